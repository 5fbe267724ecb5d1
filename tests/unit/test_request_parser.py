"""What the parser takes for a request, however the bytes are cut."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from vllm_stack.proxy.known_heads import KnownHeads
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead, check_path
from vllm_stack.proxy.request_parser import MAX_HEAD, RequestParser
from vllm_stack.proxy.routes import Route

LIMIT = 1000
HOST = b"Host: x\r\n"


def new_parser(limit: int = LIMIT) -> RequestParser:
    return RequestParser(limit, KnownHeads(100))


def parse(*pieces: bytes, limit: int = LIMIT, known: KnownHeads[RequestHead] | None = None) -> list[Request]:
    parser = RequestParser(limit, KnownHeads(100) if known is None else known)
    for piece in pieces:
        parser.feed(piece)
    return list(parser.requests)


def refusal(*pieces: bytes, limit: int = LIMIT) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(*pieces, limit=limit)
    return caught.value


def head(line: bytes = b"GET /a HTTP/1.1", *headers: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: x", *headers, b"", b""])


def post(*headers: bytes, body: bytes = b"") -> bytes:
    return head(b"POST /a HTTP/1.1", *headers) + body


CHUNKED = b"Transfer-Encoding: chunked"
UPGRADE = (b"Connection: Upgrade", b"Upgrade: h2c")
SEVERAL = (
    post(b"Content-Length: 3", body=b"abc")
    + post(CHUNKED, body=b"1\r\nd\r\n2;x=y\r\nef\r\n0\r\nX-T: 1\r\n\r\n")
    + post(b"Content-Length: 2", *UPGRADE, body=b"gh")
    + post(CHUNKED, *UPGRADE, body=b"1\r\ni\r\n0\r\n\r\n")
    + head()
)


def shown(requests: list[Request]) -> list[tuple[bytes, bytes, bytes, bool]]:
    return [(r.method, r.head.target, r.body, r.complete) for r in requests]


@settings(max_examples=examples(150))
@given(cuts=st.lists(st.integers(0, len(SEVERAL)), max_size=12))
def test_requests_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(SEVERAL)]
    pieces = [SEVERAL[a:b] for a, b in pairwise(edges)]
    bodies = [body for _, _, body, _ in shown(parse(*pieces))]
    assert bodies == [b"abc", b"def", b"gh", b"i", b""]
    assert all(complete for *_, complete in shown(parse(*pieces)))


@settings(max_examples=examples(150))
@given(cuts=st.lists(st.integers(0, len(SEVERAL)), max_size=12))
def test_requests_are_the_same_when_their_heads_are_known(cuts: list[int]) -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    parse(post(b"Content-Length: 1", body=b"x") + head(), known=known)
    parse(head(), known=known)
    parse(SEVERAL, known=known)
    edges = [0, *sorted(cuts), len(SEVERAL)]
    pieces = [SEVERAL[a:b] for a, b in pairwise(edges)]
    assert shown(parse(*pieces, known=known)) == shown(parse(SEVERAL))


@settings(max_examples=examples(150))
@given(
    parts=st.lists(
        st.sampled_from([b"\r\n", b"\n", b"\r", head(), post(b"Content-Length: 1", body=b"x")]), max_size=8
    )
)
def test_line_ends_around_requests_are_never_taken_for_one_that_is_known(parts: list[bytes]) -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    for before in (b"\r\n\r\n", b"\n\r\n\r\n", b"\r\r\n\r\n", b"\r\n"):
        with suppress(Refusal):
            parse(before + head(), known=known)
    data = b"".join(parts)
    try:
        alone = shown(parse(data))
    except Refusal:
        return
    assert shown(parse(data, known=known)) == alone


def test_a_head_that_came_before_is_not_parsed_again() -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    first = parse(post(b"Content-Length: 3", body=b"abc"), known=known)[0]
    second = parse(post(b"Content-Length: 12", body=b"abcdefghijkl"), known=known)[0]
    assert second.head is first.head
    assert (second.body, second.complete) == (b"abcdefghijkl", True)


@pytest.mark.parametrize(
    "other",
    [
        post(b"Content-Length: 3", b"X-A: 2", body=b"abc"),
        post(b"content-length: 3", b"X-A: 1", body=b"abc"),
        post(b"X-A: 1", b"Content-Length: 3", body=b"abc"),
        post(b"Content-Length:  3", b"X-A: 1", body=b"abc"),
    ],
)
def test_any_other_byte_makes_another_head(other: bytes) -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    first = parse(post(b"Content-Length: 3", b"X-A: 1", body=b"abc"), known=known)[0]
    assert parse(other, known=known)[0].head is not first.head


@pytest.mark.parametrize("length", [b"+3", b"-3", b"3 4", b"0x3", b"", b"3,3", b"9" * 30])
def test_a_known_head_opens_no_way_for_a_bad_length(length: bytes) -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    parse(post(b"Content-Length: 3", body=b"abc"), known=known)
    with pytest.raises(Refusal) as caught:
        parse(post(b"Content-Length: " + length, body=b"abc"), known=known)
    assert caught.value.status in (400, 413)


def test_a_known_head_opens_no_way_for_a_large_body() -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    parse(post(b"Content-Length: 3", body=b"abc"), known=known)
    with pytest.raises(Refusal) as caught:
        parse(post(b"Content-Length: %d" % (LIMIT + 1)), known=known)
    assert caught.value.status == 413


def test_a_second_length_is_refused_beside_a_known_head() -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    parse(post(b"Content-Length: 3", body=b"abc"), known=known)
    with pytest.raises(Refusal):
        parse(post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), known=known)


@pytest.mark.parametrize("line", [b"X-Request-Id: mine", CHUNKED, b"Upgrade: h2c", b"Expect: 100-continue"])
def test_a_request_with_a_course_of_its_own_is_never_remembered(line: bytes) -> None:
    known: KnownHeads[RequestHead] = KnownHeads(100)
    body = b"0\r\n\r\n" if line is CHUNKED else b""
    first, second = (parse(post(line, body=body), known=known)[0] for _ in range(2))
    assert first.head is not second.head


def test_only_so_many_heads_are_remembered() -> None:
    known: KnownHeads[RequestHead] = KnownHeads(3)
    for number in range(10):
        parse(head(b"GET /%d HTTP/1.1" % number), known=known)
    seen = [parse(head(b"GET /%d HTTP/1.1" % number), known=known)[0].head for number in (7, 8, 9)]
    again = [parse(head(b"GET /%d HTTP/1.1" % number), known=known)[0].head for number in (7, 8, 9)]
    assert [a is b for a, b in zip(seen, again, strict=True)] == [True] * 3


def test_requests_are_the_same_byte_by_byte() -> None:
    assert shown(parse(*(SEVERAL[i : i + 1] for i in range(len(SEVERAL))))) == shown(parse(SEVERAL))


@settings(max_examples=examples(300))
@given(data=st.binary(max_size=200), seed=st.sampled_from([b"", head()[:-2], SEVERAL[:60], SEVERAL]))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes, seed: bytes) -> None:
    parser = new_parser()
    with suppress(Refusal):
        parser.feed(seed + data)
    assert all(request.path.startswith(b"/") for request in parser.requests)


@pytest.mark.parametrize(
    ("version", "header", "keeps"),
    [
        (b"1.1", b"X: y", True),
        (b"1.1", b"Connection: close", False),
        (b"1.1", b"Connection: Close, x", False),
        (b"1.0", b"X: y", False),
        (b"1.0", b"Connection: keep-alive", False),
    ],
)
def test_a_connection_is_kept_as_the_request_says(version: bytes, header: bytes, keeps: bool) -> None:
    assert parse(head(b"GET /a HTTP/" + version, header))[0].head.keep_alive is keeps


@pytest.mark.parametrize(
    ("given_ids", "kept"),
    [
        ((b"abc-1_2.3:4",), True),
        ((b"a" * 128,), True),
        ((b"a" * 129,), False),
        ((b"",), False),
        ((b"a b",), False),
        ((b"a\tb",), False),
        ((b'a"b',), False),
        ((b"caf\xc3\xa9",), False),
        ((b"one", b"two"), False),
        ((), False),
    ],
)
def test_a_client_may_name_its_request_in_plain_words_only(given_ids: tuple[bytes, ...], kept: bool) -> None:
    request = parse(head(b"GET /a HTTP/1.1", *(b"X-Request-ID: " + i for i in given_ids)))[0]
    assert (request.id in given_ids) is kept
    assert request.id.translate(None, b"-_.:").isalnum()
    assert request.id == request.id


@pytest.mark.parametrize(
    ("line", "target", "path"),
    [
        (b"/a", b"/a", b"/a"),
        (b"/a?b=c?d", b"/a?b=c?d", b"/a"),
        (b"/a%20b?x", b"/a%20b?x", b"/a b"),
        (b"http://h/a?b", b"/a?b", b"/a"),
        (b"https://h:1/", b"/", b"/"),
        (b"http://h", b"/", b"/"),
        (b"http://h?b=c", b"/?b=c", b"/"),
        (b"http://h?b=/metrics", b"/?b=/metrics", b"/"),
        (b"http://h?b=http://c/metrics", b"/?b=http://c/metrics", b"/"),
        (b"http://user:pass@h/a", b"/a", b"/a"),
        (b"http://[::1]:80/a", b"/a", b"/a"),
    ],
)
def test_a_target_is_reduced_to_path_and_query(line: bytes, target: bytes, path: bytes) -> None:
    request = parse(head(b"GET %b HTTP/1.1" % line))[0]
    assert (request.head.target, request.path) == (target, path)


@pytest.mark.parametrize(
    "path",
    [
        b"/..",
        b"/../a",
        b"/a/..",
        b"/a/./b",
        b"/.",
        b"/%2e%2e/a",
        b"/%2E./a",
        b"//a",
        b"/a//",
        b"/a%2fb",
        b"/a%2Fb",
        b"/a%5cb",
        b"/a\\b",
        b"/%00",
        b"/%0a",
        b"/%7f",
        b"/%",
        b"/%4",
        b"/%zz",
        b"/%252e",
        b"/%25",
    ],
)
def test_a_path_that_two_could_read_differently_is_refused(path: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        check_path(path)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", b"/"),
        (b"/a/", b"/a/"),
        (b"/...", b"/..."),
        (b"/a..b/.c", b"/a..b/.c"),
        (b"/%61", b"/a"),
        (b"/a%3Fb", b"/a?b"),
        (b"/%e4%bd%a0", "/你".encode()),
        (b"/a;b=c", b"/a;b=c"),
    ],
)
def test_other_paths_are_decoded_once(raw: bytes, path: bytes) -> None:
    assert check_path(raw) == path


@given(path=st.from_regex(rb"/[ -~]{0,40}", fullmatch=True))
@settings(max_examples=examples(200))
def test_a_path_that_passes_has_only_plain_segments(path: bytes) -> None:
    try:
        decoded = check_path(path)
    except Refusal:
        return
    assert not {b".", b".."} & set(decoded.split(b"/"))
    assert b"//" not in decoded
    assert b"%" not in decoded
    assert decoded.count(b"/") == path.count(b"/")


@pytest.mark.parametrize("framing", ["length", "chunked", "upgraded"])
@pytest.mark.parametrize(("size", "passes"), [(LIMIT, True), (LIMIT + 1, False)])
def test_a_body_may_be_as_large_as_the_limit(framing: str, size: int, passes: bool) -> None:
    body = b"x" * size
    whole = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body)
    data = {
        "length": post(b"Content-Length: %d" % size, body=body),
        "chunked": post(CHUNKED, body=whole),
        "upgraded": post(CHUNKED, *UPGRADE, body=whole),
    }[framing]
    if passes:
        assert parse(data)[0].body == body
    else:
        assert refusal(data).status == 413


def test_a_length_beyond_the_limit_is_refused_before_the_body_comes() -> None:
    assert refusal(post(b"Content-Length: %d" % (LIMIT + 1))).status == 413


@pytest.mark.parametrize("cut", [1, 7, 4096])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (head(b"GET /" + b"a" * 5000 + b" HTTP/1.1"), 414),
        (head(b"GET / HTTP/1.1", b"X: " + b"a" * 8190), 431),
        (head(b"GET / HTTP/1.1", *[b"X: y"] * 100), 431),
        (head(b"GET / HTTP/1.1", b"X: " + b"a" * 2 * MAX_HEAD)[:-4], 431),
        (b"GET /" + b"a" * 2 * MAX_HEAD, 414),
        (b"\r\n" * MAX_HEAD, 431),
    ],
    ids=["target", "header", "headers", "endless header", "endless target", "endless empty lines"],
)
def test_sizes_are_limited_however_the_head_is_cut(data: bytes, status: int, cut: int) -> None:
    if cut == 1 and len(data) > 20_000:
        cut = 1000
    assert refusal(*(data[i : i + cut] for i in range(0, len(data), cut))).status == status


def test_a_body_of_one_byte_chunks_passes() -> None:
    body = b"1\r\nx\r\n" * LIMIT
    assert parse(post(CHUNKED, body=body + b"0\r\n\r\n"))[0].body == b"x" * LIMIT


@pytest.mark.parametrize(
    "junk", [b"1;" + b"e" * 1000, b"0\r\n" + b"X: %b\r\n" % (b"y" * 1000)], ids=["extensions", "trailers"]
)
def test_a_body_of_framing_without_bytes_is_refused(junk: bytes) -> None:
    pieces = [post(CHUNKED), junk, *[b"e" * 1000 if junk[:1] == b"1" else junk[3:]] * 100]
    assert refusal(*pieces, limit=10**6).status in (400, 413)


def test_a_trailer_field_becomes_no_header() -> None:
    """llhttp's binding hands the last trailer field over when the next message begins."""
    first, second = parse(post(CHUNKED, body=b"0\r\nX-Leak: 1\r\nX-Api-Key: 2\r\n\r\n") + head())
    assert first.head.headers == [(b"Host", b"x"), (b"Transfer-Encoding", b"chunked")]
    assert second.head.headers == [(b"Host", b"x")]


def test_a_good_request_is_kept_when_a_bad_one_follows_in_the_same_bytes() -> None:
    parser = new_parser()
    parser.feed(head() + head(b"GET //b HTTP/1.1"))
    assert [request.path for request in parser.requests] == [b"/a"]
    with pytest.raises(Refusal):
        parser.raise_refusal()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(head(b"OPTIONS /a RTSP/1.0"), id="RTSP"),
        pytest.param(head(b"SOURCE /a ICE/1.0"), id="ICE"),
        pytest.param(head(b"GET /a HTTP/3.0"), id="HTTP/3.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="HTTP/2"),
    ],
)
def test_other_protocols_are_refused(data: bytes) -> None:
    assert refusal(data).status in (400, 405, 505)


@pytest.mark.parametrize(
    ("expect", "answer"),
    [
        (b"100-continue", True),
        (b"100-CONTINUE", True),
        (b"100-continue ", True),
        (b"200-ok", 417),
        (b"100-continue, x", 417),
        (b"", 417),
    ],
)
def test_only_100_continue_can_be_expected(expect: bytes, answer: bool | int) -> None:
    data = post(b"Expect: " + expect, b"Content-Length: 1")
    if answer is True:
        assert parse(data)[0].head.expects_continue
    else:
        assert refusal(data).status == answer


def test_a_request_has_started_from_its_first_byte_to_its_last() -> None:
    parser = new_parser()
    assert not parser.started
    for byte in post(b"Content-Length: 2", body=b"a"):
        parser.feed(bytes([byte]))
        assert parser.started
    parser.feed(b"b")
    assert not parser.started
    parser.feed(b"P")
    assert parser.started


# ------------------------------------------------------------------ tunnels

WEBSOCKET = head(b"GET /v1/realtime HTTP/1.1", b"Connection: Upgrade", b"Upgrade: websocket")


@settings(max_examples=examples(150))
@given(cuts=st.lists(st.integers(0, len(SEVERAL + WEBSOCKET)), max_size=8), behind=st.binary(max_size=40))
def test_what_comes_behind_a_request_for_a_tunnel_is_no_request(cuts: list[int], behind: bytes) -> None:
    """Nothing more is fed once it is there: the connection belongs to the tunnel then."""
    edges = [0, *sorted(cuts), len(SEVERAL + WEBSOCKET)]
    *pieces, last = [(SEVERAL + WEBSOCKET)[a:b] for a, b in pairwise(edges)]
    while not last:
        last = pieces.pop()
    parser = new_parser()
    for piece in (*pieces, last + behind):
        parser.feed(piece)
    *before, tunnel = parser.requests
    assert [request.body for request in before] == [b"abc", b"def", b"gh", b"i", b""]
    assert (tunnel.head.route, tunnel.complete, tunnel.head.keep_alive) == (Route.TUNNEL, True, False)
    assert parser.behind == behind


def test_the_head_of_a_tunnel_is_not_learnt() -> None:
    known: KnownHeads[RequestHead] = KnownHeads(10)
    parse(WEBSOCKET, known=known)
    assert not known
