"""Everything that vLLM says it can be asked, in good requests and bad ones: nothing of it fails in us."""

from __future__ import annotations

import json
from typing import NoReturn
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.proxy.harness import KEY, Answer
from tests.surface.conftest import MODELS
from tests.surface.door import Door, Said, prepare, spell
from tests.surface.open_routes import HEALTH, LIST, NAMING, OPEN
from tests.surface.operations import FORM, labels, made_up, vllm_document, vllm_surface
from tests.surface.public_document import CODES

LONGEST_TARGET = 4094  # docs/security.md, "Limits of a connection"
CLOSED = [label for label in labels(vllm_document()) if label not in (*OPEN, *HEALTH)]

GOOD_KEYS = st.sampled_from([{"authorization": f"Bearer {KEY}"}, {"x_api_key": KEY}])
BAD_KEYS = st.sampled_from(
    [{}, {"authorization": "Bearer other"}, {"authorization": f"Basic {KEY}"}, {"x_api_key": f"{KEY}x"}]
)
NAMES = st.sampled_from([None, *(name for names in MODELS for name in names)])
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
EVENTS = b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
# What vLLM says, in its ways of saying it; nothing of this is a reason to try again elsewhere.
SAID = st.sampled_from(
    [
        Said(200, "application/json", b'{"object":"list","data":[]}'),
        Said(200, "application/json", b'{"text":"%b"}' % (b"x" * 300_000)),
        Said(200, "application/json", b"{}", chunks=1),
        Said(200, "text/event-stream; charset=utf-8", EVENTS, chunks=2),
        Said(400, "application/json", b'{"error":{"message":"no","type":"BadRequestError","code":400}}'),
        Said(422, "application/json", b'{"detail":[]}'),
    ]
)


# ------------------------------------------------------------------ what is owed


def owed_for_path(data: bytes) -> int | None:
    """Say what the door owes a request by its target alone: a status, or None if it may pass."""
    target = data.split(b" ", 2)[1]
    path = target.partition(b"?")[0]
    decoded = unquote_to_bytes(path)
    if len(target) > LONGEST_TARGET:
        return 414
    unclear = b"%2f" in path.lower() or b"%25" in path or b"//" in decoded or b"\\" in decoded
    dots = {b".", b".."} & set(decoded.split(b"/"))
    controls = any(byte < 32 or byte == 127 for byte in decoded)
    return 400 if unclear or dots or controls else None


def owed_for_model(kind: str, body: bytes) -> dict[str, int]:
    """Give the codes, with their statuses, that a request can get which names none of several models."""
    required, unknown = {"model_required": 400}, {"model_not_found": 404}
    if not kind.startswith("application/json"):
        return {"invalid_form": 400, "invalid_json": 400, **required, **unknown}
    try:
        value = json.loads(body, parse_constant=_refuse)
    except ValueError:
        # By its first byte it may be no object, whatever comes then.
        return {"invalid_json": 400, **required}
    named = value.get("model") if isinstance(value, dict) else None
    return unknown if isinstance(named, str) and named else required


def _refuse(constant: str) -> NoReturn:
    """NaN and Infinity are Python's, not JSON's."""
    raise ValueError(constant)


# ------------------------------------------------------------------ what is seen


def assert_refused(door: Door, data: bytes, *statuses: int) -> Answer:
    """The answer is an error of ours in OpenAI's shape, of one of these statuses; no worker hears of it."""
    answer, seen = door.ask(data)
    assert answer.status in statuses, (answer, data)
    assert answer.header("content-type") == "application/json", answer
    assert answer.error["type"] == "invalid_request_error", answer
    assert answer.error["code"] in CODES[answer.status], answer
    assert not seen, data
    return answer


def assert_passes(door: Door, data: bytes, said: Said) -> int:
    """The request reaches one worker as it was sent, and its answer comes as it was said.

    Gives which worker it was.
    """
    answer, seen = door.ask(data, said)
    assert (answer.status, answer.body) == (said.status, said.body), (answer, data)
    assert answer.header("content-type") == said.kind
    assert len(seen) == 1, (seen, data)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    assert (seen[0].method, seen[0].target, seen[0].body) == (method, target, body)
    assert seen[0].headers.keys() >= {"x-request-id", "x-forwarded-for"}
    kept = ("accept", "content-type", "user-agent", "x-schemathesis-testcaseid")
    sent = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert all(seen[0].headers.get(name) == sent.get(name) for name in kept), (seen, data)
    return seen[0].worker


@pytest.mark.parametrize("label", OPEN)
@given(data=st.data())
@made_up(3)
def test_what_an_open_route_is_asked_reaches_one_worker_and_with_a_key_alone(
    door: Door, pair: Door, label: str, data: st.DataObject
) -> None:
    """Of several models it is a worker of the one that is named, and none if none is."""
    case, name, said = data.draw(vllm_surface().cases(label)), data.draw(NAMES), data.draw(SAID)
    if name is not None and isinstance(case.body, dict):
        case.body = {**case.body, "model": name}
    request = prepare(case)
    kind = str(request.headers.get("content-type", ""))
    without, sent = spell(request, **data.draw(BAD_KEYS)), spell(request, **data.draw(GOOD_KEYS))
    if owed := owed_for_path(sent):
        for asked, one in ((without, door), (sent, door), (sent, pair)):
            assert_refused(one, asked, owed)
        return
    assert_refused(door, without, 401)
    assert_passes(door, sent, said)
    if label == LIST:
        return
    if label not in NAMING:
        assert_passes(pair, sent, said)
    elif name is not None and isinstance(case.body, dict) and kind != FORM:
        assert name in MODELS[assert_passes(pair, sent, said)]
    else:
        codes = owed_for_model(kind, sent.partition(b"\r\n\r\n")[2])
        refused = assert_refused(pair, sent, *codes.values())
        assert refused.error["code"] in codes, sent


@pytest.mark.parametrize("label", CLOSED)
@given(data=st.data())
@made_up(4)
def test_a_closed_route_is_404_whatever_is_asked_of_it(door: Door, label: str, data: st.DataObject) -> None:
    request = prepare(data.draw(vllm_surface().cases(label)))
    request.method = data.draw(METHODS)
    without, sent = spell(request, **data.draw(BAD_KEYS)), spell(request, **data.draw(GOOD_KEYS))
    # There is no method TRACE here, for nobody; and no such path in any spelling.
    owed = 405 if request.method == "TRACE" else owed_for_path(sent)
    for asked, status in ((without, owed or 401), (sent, owed or 404)):
        answer = assert_refused(door, asked, status)
        # RFC 9110 section 15.5.6: who refuses a method says which ones there are.
        assert (answer.header("allow") is not None) == (status == 405), answer
