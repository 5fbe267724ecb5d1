"""The head of a worker's answer: what is understood, what is refused, what the client gets of it."""

from __future__ import annotations

import pytest

from vllm_stack.proxy.answer_head import Answer, read_answer
from vllm_stack.proxy.failures import BadAnswer
from vllm_stack.proxy.framing import Chunked, Dechunked, Framing, Length, UntilClose
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead


def read(data: bytes) -> Answer:
    """Read a whole head twice: what was parsed and what was remembered must be the same."""
    first, again = read_answer(data + b"body"), read_answer(data + b"body")
    assert first is not None
    assert again is not None
    assert first[1] == again[1] == len(data)
    assert first[0].length == again[0].length
    assert first[0].head.kept == again[0].head.kept
    return again[0]


def answer(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> Answer:
    return read(b"\r\n".join([status, *lines, b"", b""]))


def request(method: bytes = b"POST", http_1_1: bool = True) -> Request:
    head = RequestHead()
    head.method, head.http_1_1, head.given_id = method, http_1_1, b"the-id"
    return Request(head)


def client_sees(head: Answer, keep_alive: bool = True, http_1_1: bool = True) -> list[bytes]:
    return head.head_for(request(http_1_1=http_1_1), keep_alive).split(b"\r\n")[:-2]


CHUNKED = b"transfer-encoding: chunked"


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03\x01 this is no HTTP \x00\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTP/1.1 200 OK\r\n\r\n",
        b"200 OK\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: y\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_what_is_no_head_is_an_upstream_failure(head: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_answer(head)


@pytest.mark.parametrize(
    "lines",
    [
        (b"content-length: 3", CHUNKED),
        (CHUNKED, b"content-length: 3"),
        (CHUNKED, CHUNKED),
        (b"transfer-encoding: gzip, chunked",),
        (b"transfer-encoding: gzip",),
        (b"transfer-encoding: chunked, chunked",),
        (b"content-length: 3", b"content-length: 3"),
        (b"content-length: 3", b"content-length: 4"),
        (b"content-length: 3, 3",),
        (b"content-length: +3",),
        (b"content-length: -3",),
        (b"content-length: 0x3",),
        (b"content-length:",),
    ],
)
def test_an_unclear_framing_is_an_upstream_failure(lines: tuple[bytes, ...]) -> None:
    with pytest.raises(BadAnswer):
        answer(*lines)


def test_chunks_do_not_exist_in_http_1_0() -> None:
    with pytest.raises(BadAnswer):
        answer(CHUNKED, status=b"HTTP/1.0 200 OK")


@pytest.mark.parametrize(
    ("status", "line", "method", "http_1_1", "framing"),
    [
        (200, b"content-length: 3", b"POST", True, Length),
        (200, b"content-length: 3 ", b"POST", True, Length),
        (200, b"Content-Length: \t3", b"POST", False, Length),
        (200, CHUNKED, b"POST", True, Chunked),
        (200, b"Transfer-Encoding: Chunked ", b"POST", True, Chunked),
        (200, CHUNKED, b"POST", False, Dechunked),
        (200, b"x: y", b"POST", True, UntilClose),
        (200, b"x: y", b"POST", False, UntilClose),
        (200, b"content-length: 3", b"HEAD", True, Length),
        (200, CHUNKED, b"HEAD", True, Length),
        (204, b"x: y", b"POST", True, Length),
        (304, b"content-length: 3", b"GET", True, Length),
    ],
)
def test_the_framing_follows_from_head_and_request(
    status: int, line: bytes, method: bytes, http_1_1: bool, framing: type[Framing]
) -> None:
    chosen = answer(line, status=b"HTTP/1.1 %d X" % status).framing_for(request(method, http_1_1))
    assert type(chosen) is framing
    assert chosen.done is (method == b"HEAD" or status in (204, 304))


@pytest.mark.parametrize(
    ("status", "lines", "keeps"),
    [
        (b"HTTP/1.1 200 OK", (b"content-length: 0",), True),
        (b"HTTP/1.1 200 OK", (b"content-length: 0", b"connection: close"), False),
        (b"HTTP/1.1 200 OK", (b"content-length: 0", b"Connection: x, Close"), False),
        (b"HTTP/1.0 200 OK", (b"content-length: 0",), False),
        (b"HTTP/1.0 200 OK", (b"content-length: 0", b"connection: keep-alive"), False),
    ],
)
def test_the_worker_says_whether_its_connection_goes_on(
    status: bytes, lines: tuple[bytes, ...], keeps: bool
) -> None:
    assert answer(*lines, status=status).head.keeps_alive is keeps


def test_what_concerns_one_connection_stops_here() -> None:
    head = answer(
        b"connection: close, x-named",
        b"x-named: 1",
        b"keep-alive: timeout=5",
        b"proxy-authenticate: Basic",
        b"trailer: x",
        b"content-type: application/json",
        b"x-request-id: other",
        b"set-cookie: a=b",
        b"set-cookie: c=d",
        b"content-length: 3",
    )
    assert client_sees(head) == [
        b"HTTP/1.1 200 OK",
        b"content-type: application/json",
        b"set-cookie: a=b",
        b"set-cookie: c=d",
        b"content-length: 3",
        b"x-request-id: the-id",
    ]


def test_a_stream_is_marked_for_proxies_before_us() -> None:
    seen = client_sees(answer(b"content-type: text/event-stream; charset=utf-8", CHUNKED))
    assert b"x-accel-buffering: no" in seen
    assert CHUNKED in seen


@pytest.mark.parametrize(("keep_alive", "http_1_1"), [(False, True), (False, False)])
def test_the_client_is_told_that_the_connection_ends(keep_alive: bool, http_1_1: bool) -> None:
    seen = client_sees(answer(CHUNKED), keep_alive, http_1_1)
    assert b"connection: close" in seen
    assert (CHUNKED in seen) is http_1_1


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_an_answer_without_a_body_gets_no_coding(status: bytes) -> None:
    seen = client_sees(answer(b"x: y", status=b"HTTP/1.1 %b No" % status))
    assert not [line for line in seen if line.startswith((b"transfer-encoding", b"content-length"))]


@pytest.mark.parametrize("status", [b"100", b"103", b"199"])
def test_an_interim_head_is_known_by_its_status(status: bytes) -> None:
    assert answer(b"link: </a>", status=b"HTTP/1.1 %b Early" % status).head.status == int(status)


@pytest.mark.parametrize("status", [b"200 OK", b"426 Upgrade Required"])
def test_an_offer_to_upgrade_is_no_failure(status: bytes) -> None:
    """Servers that speak HTTP/2 say so in every answer."""
    head = answer(
        b"upgrade: h2,h2c", b"connection: upgrade", b"content-length: 2", status=b"HTTP/1.1 " + status
    )
    assert (head.head.status, head.length) == (int(status[:3]), 2)
    assert not [line for line in client_sees(head) if line.startswith((b"upgrade", b"connection"))]


def test_a_switch_of_protocols_is_read_up_to_its_head() -> None:
    """llhttp takes it for the end of HTTP; whether it was asked for is the exchange's to say."""
    head = answer(b"upgrade: websocket", b"connection: upgrade", status=b"HTTP/1.1 101 Switching Protocols")
    assert (head.head.status, head.length) == (101, None)


def test_a_reason_may_be_missing() -> None:
    assert client_sees(answer(b"content-length: 0", status=b"HTTP/1.1 200"))[0] == b"HTTP/1.1 200 "


def test_a_head_that_is_not_all_there_is_waited_for() -> None:
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n"
    assert [read_answer(whole[:end]) for end in range(len(whole))] == [None] * len(whole)


def test_an_endless_head_is_an_upstream_failure() -> None:
    with pytest.raises(BadAnswer):
        read_answer(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000)


def test_a_remembered_head_says_nothing_of_another_length() -> None:
    lengths = [answer(b"content-length: %d" % length).length for length in (3, 0, 77, 3)]
    assert lengths == [3, 0, 77, 3]
