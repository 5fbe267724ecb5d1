"""Bytes at the door: what is refused never reaches a worker, what is accepted reaches one, once.

The rows are those of the case list (RFC 9112, PortSwigger, http-garden); a few neighbours beside.
"""

from __future__ import annotations

import select
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.proxy.harness import KEY, Answer, ScriptedWorker, Stack, Wire, chat, request
from tests.support.polling import until

Scripted = tuple[Stack, list[ScriptedWorker]]
AUTH = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
HOST_LINE = b"Host: door\r\n"


def post(framing: bytes, body: bytes = b"", version: bytes = b"1.1", more: bytes = b"") -> bytes:
    return b"POST /tokenize HTTP/%b\r\n" % version + HOST_LINE + AUTH + more + framing + b"\r\n" + body


def get(target: bytes = b"/v1/models", more: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n" % (method, target) + HOST_LINE + AUTH + more + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 3\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


def named(rows: dict[str, tuple[int, bytes]]) -> list[object]:
    return [pytest.param(status, data, id=name) for name, (status, data) in rows.items()]


REFUSED = named(
    {
        "1 length and chunked": (400, post(LENGTH + CHUNKED, CHUNKS)),
        "2 chunked and length": (400, post(CHUNKED + LENGTH, CHUNKS)),
        "3 chunked in two headers": (400, post(CHUNKED + CHUNKED, CHUNKS)),
        "3 chunked, chunked": (400, post(b"Transfer-Encoding: chunked, chunked\r\n", CHUNKS)),
        "4 chunked spelled with a vertical tab": (400, post(b"Transfer-Encoding: \x0bchunked\r\n", CHUNKS)),
        "4 identity": (400, post(b"Transfer-Encoding: identity\r\n" + LENGTH, b"abc")),
        "4 xchunked": (501, post(b"Transfer-Encoding: xchunked\r\n", CHUNKS)),
        "4 chunked, identity": (400, post(b"Transfer-Encoding: chunked, identity\r\n", CHUNKS)),
        "5 gzip, chunked": (501, post(b"Transfer-Encoding: gzip, chunked\r\n", CHUNKS)),
        "5 gzip and chunked in two headers": (501, post(b"Transfer-Encoding: gzip\r\n" + CHUNKED, CHUNKS)),
        "6 chunked in HTTP/1.0": (400, post(CHUNKED, CHUNKS, version=b"1.0")),
        "7 the length twice": (400, post(LENGTH + LENGTH, b"abc")),
        "7 the length as a list": (400, post(b"Content-Length: 3, 3\r\n", b"abc")),
        "8 two lengths": (400, post(LENGTH + b"Content-Length: 4\r\n", b"abcd")),
        "8 +3": (400, post(b"Content-Length: +3\r\n", b"abc")),
        "8 1_0": (400, post(b"Content-Length: 1_0\r\n", b"abcdefghij")),
        "8 -1": (400, post(b"Content-Length: -1\r\n")),
        "8 empty": (400, post(b"Content-Length:\r\n", b"abc")),
        "8 0x3": (400, post(b"Content-Length: 0x3\r\n", b"abc")),
        "8 3 3": (400, post(b"Content-Length: 3 3\r\n", b"abc")),
        "8 arabic digits": (400, post(b"Content-Length: \xd9\xa3\r\n", b"abc")),
        "9 10^30": (413, post(b"Content-Length: 1" + b"0" * 30 + b"\r\n")),
        "9 2^63": (413, post(b"Content-Length: 9223372036854775808\r\n")),
        "9 one more than the limit": (413, post(b"Content-Length: 67108865\r\n")),
        "10 space before the colon": (400, get(more=b"X-A : b\r\n")),
        "10 space before the colon of the length": (400, post(b"Content-Length : 3\r\n", b"abc")),
        "10 space before the first header": (400, b"GET / HTTP/1.1\r\n Host: door\r\n" + AUTH + b"\r\n"),
        "10 no colon": (400, get(more=b"nonsense\r\n")),
        "10 no name": (400, get(more=b": value\r\n")),
        "11 folded header": (400, get(more=b"X-A: b\r\n c\r\n")),
        "11 folded coding": (400, post(b"Transfer-Encoding:\r\n chunked\r\n", CHUNKS)),
        "12 bare LF everywhere": (400, get().replace(b"\r\n", b"\n")),
        "12 bare LF after a header": (400, get(more=b"X-A: b\n")),
        "12 bare LF after the request line": (400, get().replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n")),
        "12 bare LF before the body": (400, post(LENGTH, b"abc")[:-5] + b"\nabc"),
        "13 NUL in a value": (400, get(more=b"X-A: b\0c\r\n")),
        "13 NUL in a name": (400, get(more=b"X\0A: b\r\n")),
        "13 bare CR in a value": (400, get(more=b"X-A: b\rc\r\n")),
        "13 bare CR before a smuggled header": (400, get(more=b"X-A: b\rX-B: c\r\n")),
        "13 control byte in a value": (400, get(more=b"X-A: \x01\r\n")),
        "13 non-ASCII in a name": (400, get(more=b"X-\xc3\xa9: b\r\n")),
        "16 two Host": (400, get(more=b"Host: other\r\n")),
        "16 two equal Host": (400, get(more=HOST_LINE)),
        "16 no Host": (400, b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n"),
        "17 101 headers": (431, get(more=b"".join(b"X-%d: a\r\n" % n for n in range(99)))),
        "17 a header of 9 kB": (431, get(more=b"X-A: " + b"a" * 9000 + b"\r\n")),
        "17 a header name of 9 kB": (431, get(more=b"X" * 9000 + b": a\r\n")),
        "17 a header without end": (431, get(more=b"X-A: " + b"a" * 70_000)[:-4]),
        "17 many headers of 8 kB": (
            431,
            get(more=b"".join(b"X-%d: %b\r\n" % (n, b"a" * 8000) for n in range(90))),
        ),
        "17 a target of 5 kB": (414, get(b"/" + b"a" * 5000)),
        "17 a query of 5 kB": (414, get(b"/v1/models?" + b"a" * 5000)),
        "18 lower-case method": (400, get(method=b"get")),
        "18 HTTP/2.0": (505, get().replace(b"HTTP/1.1", b"HTTP/2.0")),
        "18 HTTP/1.9": (400, get().replace(b"HTTP/1.1", b"HTTP/1.9")),
        "18 HTTP/0.9": (505, b"GET /v1/models\r\n\r\n"),
        "18 HTTP/1.1 without a dot": (400, get().replace(b"HTTP/1.1", b"HTTP/11")),
        "18 lower-case http": (400, get().replace(b"HTTP/1.1", b"http/1.1")),
        "18 another protocol": (400, get(method=b"OPTIONS").replace(b"HTTP/1.1", b"RTSP/1.0")),
        "18 HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        "18 TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        "18 a tab in the request line": (400, get().replace(b" HTTP", b"\tHTTP")),
        "19 dot segments": (400, get(b"/v1/../metrics")),
        "19 dot segment at the end": (400, get(b"/v1/..")),
        "19 single dot": (400, get(b"/./metrics")),
        "19 encoded dot segments": (400, get(b"/v1/%2e%2e/metrics")),
        "19 half-encoded dot segments": (400, get(b"/v1/.%2E/metrics")),
        "19 double slash": (400, get(b"//metrics")),
        "19 double slash later": (400, get(b"/v1//models")),
        "19 encoded slash": (400, get(b"/v1%2fmodels")),
        "19 upper-case encoded slash": (400, get(b"/v1%2Fmodels")),
        "19 doubly encoded slash": (400, get(b"/v1%252fmodels")),
        "19 back slash": (400, get(b"/v1\\models")),
        "19 encoded back slash": (400, get(b"/v1%5c..%5cmetrics")),
        "19 encoded NUL": (400, get(b"/v1/models%00")),
        "19 encoded CR LF": (400, get(b"/v1/models%0d%0aX-A:%20b")),
        "19 broken percent sign": (400, get(b"/v1/models%")),
        "19 percent sign before no hex": (400, get(b"/v1/%6zodels")),
        "19 fragment": (400, get(b"/v1/models#a")),
        "19 non-ASCII path": (400, get(b"/v1/mod\xc3\xa9ls")),
        "20 absolute form with dots": (400, get(b"http://other/v1/../metrics")),
        "20 another scheme": (400, get(b"ftp://other/v1/models")),
        "20 no path": (400, get(b"v1/models")),
        "20 CONNECT": (405, b"CONNECT door:443 HTTP/1.1\r\n" + HOST_LINE + AUTH + b"\r\n"),
        "20 TRACE": (405, get(method=b"TRACE")),
        "20 OPTIONS *": (405, get(b"*", method=b"OPTIONS")),
        "20 PROPFIND": (405, get(method=b"PROPFIND")),
        "21 chunk size g": (400, post(CHUNKED, b"g\r\nabc\r\n0\r\n\r\n")),
        "21 chunk size +3": (400, post(CHUNKED, b"+3\r\nabc\r\n0\r\n\r\n")),
        "21 chunk size -3": (400, post(CHUNKED, b"-3\r\nabc\r\n0\r\n\r\n")),
        "21 chunk size 0x3": (400, post(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n")),
        "21 chunk size  3": (400, post(CHUNKED, b" 3\r\nabc\r\n0\r\n\r\n")),
        "21 empty chunk size": (400, post(CHUNKED, b"\r\nabc\r\n0\r\n\r\n")),
        "21 chunk size of 17 F": (400, post(CHUNKED, b"F" * 17 + b"\r\nabc")),
        "21 LF after the size": (400, post(CHUNKED, b"3\nabc\r\n0\r\n\r\n")),
        "21 CR without LF after the size": (400, post(CHUNKED, b"3\rXabc\r\n0\r\n\r\n")),
        "21 no CRLF after the data": (400, post(CHUNKED, b"3\r\nabc0\r\n\r\n")),
        "21 LF after the data": (400, post(CHUNKED, b"3\r\nabc\n0\r\n\r\n")),
        "21 bad extension": (400, post(CHUNKED, b"3;\x01\r\nabc\r\n0\r\n\r\n")),
        "21 bare LF in an extension": (400, post(CHUNKED, b"3;a\nb\r\nabc\r\n0\r\n\r\n")),
        "21 bare LF at the end": (400, post(CHUNKED, b"3\r\nabc\r\n0\r\n\n")),
        "21 bad trailer": (400, post(CHUNKED, b"3\r\nabc\r\n0\r\nX A: b\r\n\r\n")),
        "23 unknown expectation": (417, post(LENGTH, b"abc", more=b"Expect: 200-ok\r\n")),
        "24 extensions without end": (413, post(CHUNKED, b"1;" + b"e" * 200_000)),
        "24 trailers without end": (413, post(CHUNKED, b"0\r\n" + b"X-A: aaaaaaaaaaaaaaaaaaaaa\r\n" * 8000)),
    }
)

ACCEPTED = named(
    {
        "length": (200, post(LENGTH, b"abc")),
        "length with spaces around it": (200, post(b"Content-Length: \t3 \t\r\n", b"abc")),
        "length with leading zeros": (200, post(b"Content-Length: 0003\r\n", b"abc")),
        "chunked": (200, post(CHUNKED, CHUNKS)),
        "chunked in capitals": (200, post(b"TRANSFER-ENCODING: CHUNKED\r\n", CHUNKS)),
        "chunked with an extension and a trailer": (
            200,
            post(CHUNKED, b'3;a="b"\r\nabc\r\n0\r\nAuthorization: Bearer other\r\n\r\n'),
        ),
        "chunk size with zeros": (200, post(CHUNKED, b"003\r\nabc\r\n000\r\n\r\n")),
        "one byte a chunk": (200, post(CHUNKED, b"1\r\na\r\n" * 3 + b"0\r\n\r\n")),
        "HTTP/1.0 with a length": (200, post(LENGTH, b"abc", version=b"1.0")),
        "18 two spaces in the request line": (200, get().replace(b" HTTP", b"  HTTP")),
        "no body": (200, post(b"Content-Length: 0\r\n")),
        "neither length nor coding": (200, post(b"")),
        "20 absolute form with another host": (200, get(b"http://other:1/v1/models?a=b")),
        "20 absolute form in capitals": (200, get(b"HTTP://OTHER/v1/models")),
        "empty lines before the request": (200, b"\r\n\r\n" + get()),
        "100 headers": (200, get(more=b"".join(b"X-%d: a\r\n" % n for n in range(98)))),
        "a header of 8 kB": (200, get(more=b"X-A: " + b"a" * 8000 + b"\r\n")),
        "a target of 4 kB": (200, get(b"/v1/models?" + b"a" * 4000)),
        "an empty header": (200, get(more=b"X-A:\r\n")),
        "an empty Host": (200, b"GET /v1/models HTTP/1.1\r\nHost:\r\n" + AUTH + b"\r\n"),
        "Latin-1 in a value": (200, get(more=b"X-A: caf\xe9\r\n")),
        "odd characters in a query": (200, get(b"/v1/models?a=../../x&b=%2f%00//")),
        "Expect before a body": (200, post(LENGTH, b"abc", more=b"Expect: 100-Continue\r\n")),
        "Expect with a space behind": (200, post(LENGTH, b"abc", more=b"Expect: 100-continue \r\n")),
        "Upgrade to h2c": (200, post(LENGTH, b"abc", more=b"Connection: Upgrade\r\nUpgrade: h2c\r\n")),
        "Upgrade to h2c, chunked": (
            200,
            post(CHUNKED, CHUNKS, more=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
        ),
        "Upgrade to websocket": (200, get(more=b"Connection: Upgrade\r\nUpgrade: websocket\r\n")),
    }
)


def final(wire: Wire) -> Answer:
    while (answer := wire.answer()).status < 200:
        continue
    return answer


@pytest.mark.parametrize(("status", "data"), REFUSED)
def test_a_bad_request_is_refused_in_openai_shape_and_reaches_no_worker(
    stack: Stack, status: int, data: bytes
) -> None:
    before = stack.count()
    with stack.wire() as wire:
        answer = wire.send(data).answer()
        assert answer.status == status
        assert answer.error["type"] == "invalid_request_error"
        assert answer.header("connection") == "close"
        assert answer.header("server") is None
        assert wire.finish().ended()
    assert stack.count() == before
    assert stack.malformed() == []


@pytest.mark.parametrize(("status", "data"), ACCEPTED)
def test_an_unusual_request_reaches_one_worker_well_formed(stack: Stack, status: int, data: bytes) -> None:
    before = stack.count()
    with stack.wire() as wire:
        answer = final(wire.send(data))
        assert answer.status == status
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
        found.append(final(wire).status)
    wire.finish()
    while not wire.ended():
        found.append(final(wire).status)
    return found


@given(data=mutated())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_mutation_makes_two_requests_of_one_or_fails_in_us(stack: Stack, data: bytes) -> None:
    before = stack.count()
    with stack.wire() as wire:
        statuses = statuses_of(wire.send(data))
    assert not [status for status in statuses if status >= 500 and status not in (501, 505)], data
    reached = stack.count() - before
    assert reached <= 1, data
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
