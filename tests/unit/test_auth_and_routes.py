"""Who may come in, and where to."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.keys.api_key import hash_key
from vllm_stack.keys.store import KeyPaths
from vllm_stack.proxy.auth import check_key
from vllm_stack.proxy.key_usage import KeyUsage
from vllm_stack.proxy.keyring import Keyring
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_head import RequestHead, check_path
from vllm_stack.proxy.routes import CLOSED, INFERENCE, Route, is_closed, route_of
from vllm_stack.proxy.settings import KeySettings

ACCEPTED = (hash_key(b"first"), hash_key(b"second"))
NOWHERE = KeyPaths(Path("/nowhere/keys.json"))
USAGE = KeyUsage(1)
LOG = logging.getLogger("gunicorn.error")
A, X = b"Authorization", b"X-Api-Key"


def admitted(*headers: tuple[bytes, bytes], accepted: tuple[bytes, ...] = ACCEPTED) -> bool:
    head = RequestHead()
    for name, value in headers:
        head.add(name, value)
    refused: Refusal | None = None
    try:
        check_key(head, Keyring(KeySettings(accepted, False, NOWHERE), USAGE.row(0), LOG))
    except Refusal as caught:
        refused = caught
    if refused is None:
        return True
    error = json.loads(refused.body())["error"]
    assert (refused.status, error["code"]) == (401, "invalid_api_key")
    assert dict(refused.headers)["www-authenticate"] == "Bearer"
    return False


@pytest.mark.parametrize(
    "headers",
    [
        [(A, b"Bearer first")],
        [(A, b"Bearer second")],
        [(A, b"bearer first")],
        [(A, b"BEARER   first ")],
        [(b"AUTHORIZATION", b"Bearer first")],
        [(X, b"first")],
        [(b"x-api-key", b" second ")],
        [(A, b"Bearer first"), (X, b"wrong")],
    ],
)
def test_a_known_key_opens(headers: list[tuple[bytes, bytes]]) -> None:
    assert admitted(*headers)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(A, b"")],
        [(A, b"Bearer")],
        [(A, b"Bearer ")],
        [(A, b"first")],
        [(A, b"Basic first")],
        [(A, b"Bearer: first")],
        [(A, b"Bearer,first")],
        [(A, b"Bearer first second")],
        [(A, b"Bearer FIRST")],
        [(A, b"Bearer firs")],
        [(A, b"Bearer \xff\xfe\xc3\xa9")],
        [(A, b"Bearer " + b"k" * 8000)],
        [(A, b"Bearer " + ACCEPTED[0])],
        [(A, b"Bearer " + ACCEPTED[0].hex().encode())],
        [(A, b"Bearer first"), (A, b"Bearer first")],
        [(A, b"Bearer wrong"), (X, b"first")],
        [(A, b"Bearer first"), (A, b"Bearer second"), (X, b"first")],
        [(X, b"first"), (X, b"first")],
        [(X, b"Bearer first")],
        [(X, b"")],
    ],
)
def test_anything_else_stays_out(headers: list[tuple[bytes, bytes]]) -> None:
    assert not admitted(*headers)


@given(value=st.binary(max_size=60))
def test_no_bytes_break_the_comparison(value: bytes) -> None:
    assert not admitted((A, b"Bearer " + value)) or value.strip() in (b"first", b"second")


def test_without_configured_keys_everyone_comes_in() -> None:
    assert admitted(accepted=())
    assert admitted((A, b"Bearer anything"), accepted=())


@pytest.mark.parametrize("path", sorted(CLOSED))
def test_a_closed_route_is_closed_with_all_below_it(path: bytes) -> None:
    for spelling in (path, path + b"/", path + b"/below", path + b"/below/"):
        assert is_closed(spelling, frozenset())


@given(closed=st.sampled_from(sorted(CLOSED)), data=st.data())
def test_percent_signs_open_no_closed_route(closed: bytes, data: st.DataObject) -> None:
    spelled = b"".join(
        b"%%%02x" % byte if byte != ord("/") and data.draw(st.booleans()) else bytes([byte])
        for byte in closed
    )
    assert is_closed(check_path(spelled), frozenset())


@pytest.mark.parametrize(
    "path", [*sorted(INFERENCE), b"/", b"/v1/models", b"/version", b"/sleepy", b"/v1/sleep"]
)
def test_other_routes_are_open(path: bytes) -> None:
    assert not is_closed(path, frozenset())


def test_opening_one_route_opens_no_other() -> None:
    opened = frozenset({b"/sleep"})
    assert not is_closed(b"/sleep", opened)
    assert not is_closed(b"/sleep/", opened)
    assert is_closed(b"/wake_up", opened)
    assert is_closed(b"/metrics", opened)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        (b"POST", b"/v1/chat/completions", True),
        (b"POST", b"/v1/embeddings", True),
        (b"GET", b"/v1/chat/completions", False),
        (b"PUT", b"/v1/chat/completions", False),
        (b"POST", b"/v1/chat/completions/", False),
        (b"POST", b"/v1/models", False),
        (b"POST", b"/v1/files", False),
        (b"DELETE", b"/v1/x", False),
    ],
)
def test_only_what_runs_the_model_and_changes_nothing_is_sent_twice(
    method: bytes, path: bytes, expected: bool
) -> None:
    assert (route_of(method, path, frozenset()) is Route.INFERENCE) is expected
