"""Requests as bytes, and what must become of each: the case list of RFC 9112, PortSwigger and http-garden.

What is refused never reaches a worker; what is accepted reaches one, once, well-formed. `comparison`
sends the same to other proxies. The number before a name is that of the case, as in docs/wire.md.
"""

from __future__ import annotations

from typing import NamedTuple

from tests.integration.proxy.harness import KEY


class Row(NamedTuple):
    """A request, and the status it must get."""

    name: str
    status: int
    data: bytes


AUTH = b"Authorization: Bearer " + KEY.encode() + b"\r\n"
HOST_LINE = b"Host: door\r\n"


def post(framing: bytes, body: bytes = b"", version: bytes = b"1.1", more: bytes = b"") -> bytes:
    return b"POST /tokenize HTTP/%b\r\n" % version + HOST_LINE + AUTH + more + framing + b"\r\n" + body


def get(target: bytes = b"/v1/models", more: bytes = b"", method: bytes = b"GET") -> bytes:
    return b"%b %b HTTP/1.1\r\n" % (method, target) + HOST_LINE + AUTH + more + b"\r\n"


CHUNKED = b"Transfer-Encoding: chunked\r\n"
LENGTH = b"Content-Length: 3\r\n"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"


REFUSED = tuple(
    Row(name, status, data)
    for name, (status, data) in {
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
    }.items()
)

ACCEPTED = tuple(
    Row(name, status, data)
    for name, (status, data) in {
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
    }.items()
)
