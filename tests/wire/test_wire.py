"""Bytes at the door: what is refused never reaches a worker, what is accepted reaches one, once."""

from __future__ import annotations

import select
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.proxy.harness import KEY, Answer, ScriptedWorker, Stack, Wire, chat, request
from tests.support.examples import examples
from tests.support.polling import until
from tests.wire.corpus import ACCEPTED, CHUNKED, CHUNKS, LENGTH, REFUSED, Row, get, post

Scripted = tuple[Stack, list[ScriptedWorker]]


def name_of(row: Row) -> str:
    return row.name


def final(wire: Wire) -> Answer:
    while (answer := wire.answer()).status < 200:
        continue
    return answer


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_a_bad_request_is_refused_in_openai_shape_and_reaches_no_worker(stack: Stack, row: Row) -> None:
    before = stack.count()
    with stack.wire() as wire:
        answer = wire.send(row.data).answer()
        assert answer.status == row.status
        assert answer.error["type"] == "invalid_request_error"
        assert answer.header("connection") == "close"
        assert answer.header("server") is None
        assert wire.finish().ended()
    assert stack.count() == before
    assert stack.malformed() == []


@pytest.mark.parametrize("row", ACCEPTED, ids=name_of)
def test_an_unusual_request_reaches_one_worker_well_formed(stack: Stack, row: Row) -> None:
    before = stack.count()
    with stack.wire() as wire:
        answer = final(wire.send(row.data))
        assert answer.status == row.status
        if answer.header("connection") != "close":
            assert wire.goes_on()
    assert stack.count() == before + 1
    assert stack.malformed() == []


@pytest.mark.parametrize("step", [1, 7])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_request_in_small_pieces_is_the_same_request(stack: Stack, framing: str, step: int) -> None:
    data = post(LENGTH, b"abc") if framing == "length" else post(CHUNKED, CHUNKS)
    before = stack.count()
    with stack.wire() as wire:
        wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), step):
            wire.send(data[start : start + step])
        assert wire.answer().status == 200
        assert wire.goes_on()
    assert stack.count() == before + 1


def worker_headers(stack: Stack, data: bytes) -> dict[str, list[str]]:
    """Send `data` and return the headers that a worker saw, by name."""
    marker = b"X-Request-Id: seen-%d\r\n" % (stack.count() + 1)
    first, _, rest = data.partition(b"\r\n")
    assert stack.ask(first + b"\r\n" + marker + rest).status == 200
    identity = marker[14:-2].decode()
    for worker in stack.workers:
        for seen in worker.requests():
            pairs: list[list[str]] = seen["headers"]
            if ["x-request-id", identity] in pairs:
                found: dict[str, list[str]] = {}
                for name, value in pairs:
                    found.setdefault(name.lower(), []).append(value)
                return found
    raise AssertionError(f"no worker saw {identity}")


HOP_BY_HOP = b"""Connection: close, X-Named, Authorization\r
X-Named: 1\r
Keep-Alive: timeout=5\r
Proxy-Connection: keep-alive\r
Proxy-Authorization: Basic abc\r
TE: trailers\r
Trailer: X-T\r
Upgrade: h2c\r
HTTP2-Settings: AAA\r
X_Auth: underscore\r
X-Auth: hyphen\r
X-Forwarded-For: 6.6.6.6\r
Forwarded: for=6.6.6.6\r
X-Real-IP: 6.6.6.6\r
X-API-Key: client\r
Content-Type: application/json\r
"""


def test_hop_by_hop_headers_and_keys_stop_at_the_door(stack: Stack) -> None:
    headers = worker_headers(stack, post(LENGTH, b"abc", more=HOP_BY_HOP))
    internal = (stack.out / "secrets/internal-key").read_text().strip()
    assert headers.pop("authorization") == [f"Bearer {internal}"]
    assert headers.pop("x-forwarded-for") == ["127.0.0.1"]
    assert headers.pop("content-length") == ["3"]
    assert headers.pop("x-auth") == ["hyphen"]
    assert headers.pop("content-type") == ["application/json"]
    assert headers.pop("http2-settings", None) in (None, ["AAA"])
    assert headers.keys() == {"host", "x-request-id"}


def test_a_trace_is_passed_on_as_it_came(stack: Stack) -> None:
    """W3C Trace Context: vLLM continues it where it is told to (`--otlp-traces-endpoint`)."""
    trace = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "baggage": "userId=alice,serverNode=DF%2028",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in trace.items())
    headers = worker_headers(stack, post(LENGTH, b"abc", more=lines.encode()))
    assert {name: headers[name] for name in trace} == {name: [value] for name, value in trace.items()}


@pytest.mark.parametrize(
    "name", ["Content-Length", "Host", "X-Request-Id", "Content-Type, Transfer-Encoding"]
)
def test_connection_cannot_take_away_what_the_worker_needs(stack: Stack, name: str) -> None:
    headers = worker_headers(stack, post(LENGTH, b"abc", more=b"Connection: %b\r\n" % name.encode()))
    assert headers["content-length"] == ["3"]
    assert headers["host"] == ["door"]


def test_a_trailer_becomes_no_header_of_the_next_request(stack: Stack) -> None:
    first = post(CHUNKED, b"3\r\nabc\r\n0\r\nX-Leak: 1\r\nAuthorization: Bearer other\r\n\r\n")
    with stack.wire() as wire:
        answers = [wire.send(first).answer(), wire.send(get(more=b"X-Request-Id: after\r\n")).answer()]
    assert [answer.status for answer in answers] == [200, 200]
    seen = [s for w in stack.workers for s in w.requests() if ["x-request-id", "after"] in s["headers"]]
    assert len(seen) == 1
    assert "x-leak" not in {name.lower() for name, _ in seen[0]["headers"]}


# ------------------------------------------------------------------ pipelining, expect, versions


def test_three_pipelined_requests_are_answered_in_order(stack: Stack) -> None:
    bodies = [chat(words=word, tokens=1) for word in ("one", "two", "three")]
    before = stack.count()
    with stack.wire() as wire:
        wire.send(b"".join(request(body=body) for body in bodies))
        texts = [wire.answer().json["choices"][0]["message"]["content"] for _ in bodies]
        assert texts == ["0:one ", "0:two ", "0:three "]
        assert wire.goes_on()
    assert stack.count() == before + 3


def test_a_request_behind_a_chunked_one_begins_at_the_right_byte(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(post(CHUNKED, CHUNKS) + get() + post(LENGTH, b"abc") + get(b"/livez"))
        assert [wire.answer().status for _ in range(4)] == [200] * 4


def test_a_good_request_before_a_bad_one_is_answered_first(stack: Stack) -> None:
    """One after the other, or in one segment: the answers are the same."""
    with stack.wire() as wire:
        wire.send(get() + get(b"//metrics"))
        assert wire.answer().status == 200
        assert wire.answer().status == 400
        assert wire.ended()


def test_a_request_behind_connection_close_is_not_answered(stack: Stack) -> None:
    before = stack.count()
    with stack.wire() as wire:
        wire.send(get(more=b"Connection: close\r\n") + get())
        answer = wire.answer()
        assert answer.status == 200
        assert answer.header("connection") == "close"
        assert wire.ended()
    assert stack.count() == before + 1


def test_a_refused_body_is_not_taken_for_the_next_request(stack: Stack) -> None:
    before = stack.count()
    with stack.wire() as wire:
        wire.send(request(path="/tokenize", body=get(), key="wrong"))
        assert wire.answer().status == 401
        assert wire.goes_on()
    assert stack.count() == before


def test_the_door_goes_on_after_a_refusal_whose_body_was_read(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(post(LENGTH, b"abc").replace(KEY.encode(), b"wrong-key"))
        assert wire.answer().status == 401
        assert wire.goes_on()


def test_expect_is_answered_before_the_body_is_sent(stack: Stack) -> None:
    with stack.wire() as wire:
        assert wire.send(post(LENGTH, more=b"Expect: 100-continue\r\n")).answer().status == 100
        assert wire.send(b"abc").answer().status == 200
        assert wire.goes_on()


def test_expect_with_a_wrong_key_is_refused_before_the_body_is_sent(stack: Stack) -> None:
    with stack.wire() as wire:
        head = post(LENGTH, more=b"Expect: 100-continue\r\n").replace(KEY.encode(), b"wrong-key")
        answer = wire.send(head).answer()
        assert (answer.status, answer.header("connection")) == (401, "close")


@pytest.mark.parametrize(
    "data", [post(CHUNKED, b"3\r\nab"), post(LENGTH, b"ab"), post(CHUNKED, b"3\r\nabc\r\n"), get()[:-2]]
)
def test_a_truncated_request_is_never_sent_on(stack: Stack, data: bytes) -> None:
    before = stack.count()
    with stack.wire() as wire:
        assert wire.send(data).finish().answer().status == 400
        assert wire.ended()
    assert stack.count() == before


def test_a_connection_that_says_nothing_gets_nothing(stack: Stack) -> None:
    with stack.wire() as wire:
        assert wire.finish().ended()


def test_an_http_1_0_client_gets_a_stream_without_chunks(stack: Stack) -> None:
    data = request(body=chat(stream=True, tokens=3), version="1.0")
    with stack.wire() as wire:
        answer = wire.send(data).answer()
        assert answer.header("transfer-encoding") is None
        assert answer.header("connection") == "close"
        assert answer.events[-1] == b"data: [DONE]"
        assert wire.ended()


def test_an_http_1_0_client_cannot_keep_the_connection(stack: Stack) -> None:
    with stack.wire() as wire:
        answer = wire.send(request("GET", "/v1/models", version="1.0", connection="keep-alive")).answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
        assert wire.ended()


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/sleep", "/nowhere"])
def test_the_answer_to_head_is_the_head_of_get(stack: Stack, path: str) -> None:
    with stack.wire() as wire:
        whole = wire.send(request("GET", path)).answer()
        head = wire.send(request("HEAD", path)).answer(head_only=True)
        assert wire.goes_on()
    # vLLM has no HEAD; what it says to one has a length all the same, and no body.
    assert head.header("content-length") is not None
    if path != "/v1/models":
        assert head.status == whole.status
        assert head.header("content-length") == whole.header("content-length")


def test_a_body_as_large_as_the_limit_allows_passes(stack: Stack) -> None:
    body = b"x" * (9 * 1024 * 1024)
    with stack.wire() as wire:
        wire.send(request(path="/tokenize", body=body))
        assert wire.answer().status == 200
        assert wire.goes_on()
    assert max(w.last()["body_length"] for w in stack.workers if w.requests()) == len(body)


def test_a_body_that_grows_beyond_the_limit_is_refused(stack: Stack) -> None:
    before = stack.count()
    with stack.wire() as wire:
        wire.send(post(CHUNKED))
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(66):
            wire.send(chunk)
        # What was sent behind the refusal may have reset it away: then the end alone is seen.
        assert wire.answer().status == 413
    assert stack.count() == before


# ------------------------------------------------------------------ mutations

NOISE = st.sampled_from(
    [b" ", b"\t", b"\r", b"\n", b"\0", b"\x0b", b"\x7f", b"\xff", b":", b",", b";", b"0", b"\r\n"]
)
SEEDS = st.sampled_from(
    [
        post(LENGTH, b"abc"),
        post(CHUNKED, CHUNKS),
        post(CHUNKED, b"3;a=b\r\nabc\r\n0\r\nX: y\r\n\r\n"),
        get(),
        get(b"http://other/v1/models"),
        post(LENGTH, b"abc", more=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        post(LENGTH, b"abc", more=b"Expect: 100-continue\r\n"),
    ]
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Change a good request: insert, delete or swap bytes, change case, repeat or reorder lines."""
    data = draw(SEEDS)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["insert", "delete", "case", "repeat", "reorder", "replace"]))
        if kind == "insert":
            data = data[:at] + draw(NOISE) + data[at:]
        elif kind == "replace":
            data = data[:at] + draw(NOISE) + data[at + 1 :]
        elif kind == "delete":
            data = data[:at] + data[at + draw(st.integers(1, 3)) :]
        elif kind == "case":
            data = data[:at] + data[at : at + 12].swapcase() + data[at + 12 :]
        else:
            lines = data.split(b"\r\n")
            one = draw(st.integers(1, max(1, len(lines) - 2)))
            line = lines[min(one, len(lines) - 1)]
            lines.insert(draw(st.integers(1, len(lines))), line)
            if kind == "reorder":
                lines.pop(one)
            data = b"\r\n".join(lines)
    return data


def readable(wire: Wire, seconds: float) -> bool:
    """Tell whether something comes in time; unlike `select.select`, of any descriptor."""
    poll = select.poll()
    poll.register(wire.sock, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def statuses_of(wire: Wire) -> list[int]:
    """Return the statuses that came; a request that is not whole is ended after a while."""
    found: list[int] = []
    if not readable(wire, 0.1):
        wire.finish()
    while readable(wire, 0.05) or wire.buffered:
        if wire.ended():
            return found
        found.append(wire.answer().status)  # an interim one may be the last while the body is not whole
    wire.finish()
    while not wire.ended():
        found.append(wire.answer().status)
    return [status for status in found if status >= 200]


def sent_and_reached(stack: Stack, data: bytes) -> tuple[list[int], int]:
    """Send it, and give the statuses that came and how many requests reached a worker."""
    before = stack.count()
    with stack.wire() as wire:
        statuses = statuses_of(wire.send(data))
    stack.wait_quiet()  # a client that is gone may have a request on its way to a worker
    return statuses, stack.count() - before


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n"])
def test_blank_lines_are_nobodys_request_whatever_was_behind_others_before(
    stack: Stack, before: bytes
) -> None:
    """A head is remembered by its bytes; those of nothing at all are no head."""
    assert sent_and_reached(stack, before + get()) == ([200], 1)
    for data in (get() + before, get() + before + before, get() + before + get()):
        statuses, reached = sent_and_reached(stack, data)
        # Blank lines alone may be taken for the beginning of a request that does not come: 400 at the end.
        assert (statuses.count(200), reached) == (data.count(b"GET"),) * 2, data
        assert set(statuses) <= {200, 400}, data
    assert sent_and_reached(stack, before)[1] == 0


@given(data=mutated())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mutation_makes_two_requests_of_one_or_fails_in_us(stack: Stack, data: bytes) -> None:
    statuses, reached = sent_and_reached(stack, data)
    assert not [status for status in statuses if status >= 500 and status not in (501, 505)], data
    assert reached <= 1, (data, statuses)
    assert stack.malformed() == [], data


def test_a_client_that_goes_in_the_middle_of_its_request_leaves_nothing(stack: Stack) -> None:
    refused = stack.totals()["refused"]
    for cut in (1, 20, len(get()) - 1):
        with stack.wire() as wire:
            wire.send(get()[:cut]).reset()
    until(lambda: stack.totals()["refused"] >= refused, 2, "the counters answer")
    assert stack.ask(request("GET", "/v1/models")).status == 200


def test_every_answer_of_the_door_names_the_request(stack: Stack) -> None:
    with stack.wire() as wire:
        assert (
            wire.send(request(body=chat(), x_request_id="my-id.1")).answer().header("x-request-id")
            == "my-id.1"
        )
        given_anew = (
            wire.send(request(body=chat(), x_request_id="not a word")).answer().header("x-request-id")
        )
        assert given_anew is not None
        assert given_anew.isalnum()
        refused = wire.send(request("GET", "/sleep", x_request_id="my-id.2")).answer()
        assert (refused.status, refused.header("x-request-id")) == (404, "my-id.2")


def test_a_json_bomb_is_passed_on_unread(scripted: Scripted) -> None:
    stack, workers = scripted
    bomb = b"[" * 100_000 + b"]" * 100_000

    def play(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(b"HTTP/1.1 400 No\r\ncontent-length: 2\r\n\r\n{}")
        return True

    for worker in workers:
        worker.play = play
    assert stack.ask(request(body=bomb)).status == 400
    assert [seen.endswith(bomb) for worker in workers for seen in worker.requests] == [True]
