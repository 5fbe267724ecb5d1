"""The model that a request names, and what becomes of requests that name none."""

from __future__ import annotations

import json
import time
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.address import TcpAddress
from vllm_stack.proxy.destination import ANYWHERE, Destination, among_models, make_reader
from vllm_stack.proxy.model_name import in_body, in_query, required_in_query
from vllm_stack.proxy.models import Models, lanes
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.settings import ProxySettings, Server

FORM = b"multipart/form-data; boundary=B"


def request(
    body: bytes = b"", kind: bytes | None = None, target: bytes = b"/v1/chat/completions", route: Any = None
) -> Request:
    head = RequestHead()
    head.method, head.target, head.path = b"POST", target, target.partition(b"?")[0]
    head.route = route or Route.INFERENCE
    if kind is not None:
        head.add(b"Content-Type", kind)
    made = Request(head)
    made.chunks, made.body_size = [body], len(body)
    made.finish()
    return made


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--B\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name, more, value)


def refused(body: bytes, kind: bytes | None = None) -> tuple[int, str, str | None]:
    with pytest.raises(Refusal) as caught:
        in_body(request(body, kind))
    return caught.value.status, caught.value.code, caught.value.param


def models(*names: tuple[str, ...], owners: tuple[int, ...] = (0, 1)) -> Models:
    unused: dict[str, Any] = dict.fromkeys(ProxySettings.__dataclass_fields__)
    servers = tuple(
        Server(f"worker-{n}", TcpAddress("127.0.0.1", 1 + n), None, 60.0, None, owner)
        for n, owner in enumerate(owners)
    )
    return Models(ProxySettings(**{**unused, "models": names, "servers": servers}))


@given(st.text(min_size=1), st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()))
def test_the_name_is_what_json_says_whatever_stands_around_it(name: str, around: dict[str, Any]) -> None:
    around.pop("model", None)
    for body in ({"model": name, **around}, {**around, "model": name}):
        assert in_body(request(json.dumps(body).encode())) == name
        assert in_body(request(json.dumps(body, ensure_ascii=False, indent=1).encode())) == name


@pytest.mark.parametrize(
    "body", [b"{}", b'{"model":null}', b'{"model":""}', b'{"model":1}', b"[]", b'"m"', b"1"]
)
def test_a_body_without_a_name_is_told_so(body: bytes) -> None:
    assert refused(body) == (400, "model_required", "model")


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model":"m"', b'{"model":"m"}x', b"\xff", b'{"model":"\xff"}']
)
def test_a_body_that_is_no_json_is_told_so(body: bytes) -> None:
    assert refused(body) == (400, "invalid_json", None)


def test_the_last_of_several_names_counts_as_in_pythons_own_reader() -> None:
    body = b'{"model":"a","model":"b"}'
    assert in_body(request(body)) == json.loads(body)["model"] == "b"


@pytest.mark.parametrize("kind", [FORM, b'Multipart/Form-Data;charset=utf-8; boundary="B"'])
@pytest.mark.parametrize("size", [0, 10, 1024 * 1024 - 100, 1024 * 1024, 3 * 1024 * 1024 + 5])
def test_a_forms_field_is_found_on_either_side_of_a_file(kind: bytes, size: int) -> None:
    file = part(b"file", b"\r\n--A" * (size // 5), b'; filename="model"')
    name = part(b"model", "näme".encode())
    for body in (file + name, name + file):
        assert in_body(request(body + b"--B--\r\n", kind)) == "näme"


@given(st.integers(0, 300))
def test_a_name_is_found_whole_wherever_the_pieces_part(shift: int) -> None:
    file = part(b"file", b"x" * (1024 * 1024 - shift), b'; filename="a"')
    assert in_body(request(file + part(b"model", b"org/name") + b"--B--\r\n", FORM)) == "org/name"


def test_nothing_of_a_form_is_parsed_behind_the_name() -> None:
    body = part(b"model", b"m") + b"--B\r\nno header at all"
    with pytest.raises(Refusal):
        in_body(request(b"--B\r\nno header at all", FORM))
    rest = bytes(1024 * 1024)
    assert in_body(request(part(b"model", b"m") + part(b"file", rest)[:-20] + body[-21:], FORM)) == "m"


@pytest.mark.parametrize("crumb", [part(b"f", b""), b"--B\r\na:b\r\n\r\n\r\n"], ids=["parts", "short parts"])
def test_a_form_of_crumbs_is_refused_before_it_takes_long(crumb: bytes) -> None:
    body = crumb * (20 * 1024 * 1024 // len(crumb)) + b"--B--\r\n"
    begun = time.process_time()
    assert refused(body, FORM)[:2] == (400, "invalid_form")
    assert time.process_time() - begun < 0.3


def test_a_part_of_header_lines_alone_is_refused_too() -> None:
    assert refused(b"--B\r\n" + b"a:b\r\n" * 5000 + b"\r\n--B--\r\n", FORM)[:2] == (400, "invalid_form")


def test_others_have_their_turn_while_a_form_is_parsed() -> None:
    turns: list[int] = []

    def count() -> None:
        while True:
            turns.append(1)
            gevent.sleep(0)

    other = gevent.spawn(count)
    try:
        in_body(request(part(b"file", bytes(5 * 1024 * 1024)) + part(b"model", b"m") + b"--B--\r\n", FORM))
    finally:
        other.kill()
    assert len(turns) >= 5


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/v1/realtime", None),
        (b"/v1/realtime?", None),
        (b"/v1/realtime?x=1", None),
        (b"/v1/realtime?model", None),
        (b"/v1/realtime?model=", None),
        (b"/v1/realtime?model=a", "a"),
        (b"/v1/realtime?x=1&model=org%2Fa+b", "org/a b"),
        (b"/v1/realtime?model=a&model=b", "b"),
        (b"/v1/realtime?model=%c3%a4", "ä"),
    ],
)
def test_the_query_names_a_model(target: bytes, name: str | None) -> None:
    asked = request(target=target)
    assert in_query(asked) == name
    if name is None:
        with pytest.raises(Refusal):
            required_in_query(asked)
    else:
        assert required_in_query(asked) == name


def test_several_models_have_numbers_and_every_name_of_one_is_its_own() -> None:
    several = models(("a", "b"), ("c",), owners=(0, 0, 1))
    assert [several.number(name) for name in "abc"] == [0, 0, 1]
    assert several.others == [{2}, {0, 1}, set()]
    assert several.of(request(b'{"model":"c"}')) == 1
    assert several.of(request(b'{"model":"c"}', route=Route.OTHER)) == several.any == 2
    assert several.of(request(target=b"/v1/realtime?model=b", route=Route.TUNNEL)) == 0
    assert len(several.others) == lanes(several.names) == 3


def test_one_model_is_what_every_request_is_about() -> None:
    one = models(("a",), owners=(0, 0))
    assert one.of(request(b"not even JSON")) == one.any == 0
    assert one.others == [set()]
    assert lanes(one.names) == 1


def test_one_conversation_with_two_models_has_two_keys() -> None:
    several = models(("a",), ("b",))
    read = among_models(make_reader("prefix", "x"), several.of)
    bodies = [{"model": name, "messages": [{"role": "user", "content": "hi"}]} for name in "ab"]
    first, second = (read(request(json.dumps(body).encode())) for body in bodies)
    assert (first.model, second.model) == (0, 1)
    assert first.key is not None
    assert second.key is not None
    assert first.key != second.key
    assert among_models(lambda _: ANYWHERE, several.of)(request(b'{"model":"b"}')) == Destination(
        None, False, 1
    )


@given(st.lists(st.integers(1, 9) | st.integers(30_000, 70_000), max_size=60), st.integers(1, 5))
def test_pieces_of_a_body_are_gathered_in_order_and_stay_few(sizes: list[int], at_once: int) -> None:
    made = Request(RequestHead())
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    for start in range(0, len(pieces), at_once):
        since = len(made.chunks)
        made.chunks += pieces[start : start + at_once]
        made.gather(since)
    assert b"".join(made.chunks) == b"".join(pieces)
    small = [len(piece) for piece in made.chunks if len(piece) < 1000]
    assert len(small) <= 7 * (1 + sum(size >= 30_000 for size in sizes))


def test_a_body_in_crumbs_is_not_kept_in_crumbs() -> None:
    made = Request(RequestHead())
    for _ in range(100_000):
        since = len(made.chunks)
        made.chunks.append(b"ab")
        made.gather(since)
    assert len(made.chunks) < 40
    assert b"".join(made.chunks) == b"ab" * 100_000
