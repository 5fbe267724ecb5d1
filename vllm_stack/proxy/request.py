"""Reading requests: llhttp's strict parser, and the rules it leaves to us.

llhttp refuses bad syntax, Content-Length beside Transfer-Encoding, and a second Content-Length.
Left to us are the ones below `_check_head`, all sizes, and what to do with an Upgrade. Several
requests may arrive in one read (pipelining): they queue up in order.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import httptools

from vllm_stack.proxy.known_heads import KnownHeads, cut
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_id import new_id
from vllm_stack.proxy.routes import Route

MAX_TARGET = 4094
MAX_HEADERS = 100
MAX_HEADER = 8190
MAX_HEAD = 65536
MAX_ID = 128
METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})
_BAD_IN_PATH = (b"//", b"\\", b"\0")
_BROKEN_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_AUTHORITY = re.compile(rb"[^/?#]*")
# With one of these a request takes a course of its own, or names itself: it is parsed in full.
_OWN_COURSE = frozenset({b"expect", b"transfer-encoding", b"upgrade", b"x-request-id"})
_FRAMING_HEADERS = frozenset({b"transfer-encoding", b"content-length"})


class RequestHead:
    """All that the head of a request says but its length: the same bytes make the same head.

    Filled in by llhttp; complete and checked before anybody else sees it, and not changed after.
    What others conclude from it is kept with it: its `route`, the digest of its key, and the lines
    that go to a worker (`forwarded`).
    """

    __slots__ = (
        "_named",
        "expects_continue",
        "forwarded",
        "given_id",
        "headers",
        "http_1_1",
        "keep_alive",
        "key_digest",
        "method",
        "path",
        "route",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.path = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.http_1_1 = True
        self.keep_alive = True
        self.expects_continue = False
        self._named: dict[bytes, list[bytes]] = {}
        # What the client calls this request, if that is a plain word.
        self.given_id = b""
        self.route: Route | None = None
        self.key_digest: bytes | None = None
        self.forwarded: bytes | None = None

    def add(self, name: bytes, value: bytes) -> None:
        """Take one header as it came."""
        self.headers.append((name, value))
        self._named.setdefault(name.lower(), []).append(value)

    def values(self, name: bytes) -> Sequence[bytes]:
        """Give the values of a header, by its lower-case name, in the order they came."""
        return self._named.get(name, ())

    @property
    def may_recur(self) -> bool:
        """Tell whether a later request may be told by these bytes alone: plain framing, no upgrade."""
        return not (self._named.keys() & _OWN_COURSE)


class Request:
    """One request, growing as it arrives: the head first, then `complete` with its body."""

    __slots__ = ("body_size", "chunks", "complete", "cors", "head", "id")

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        self.chunks: list[bytes] = []
        self.body_size = 0
        self.complete = False
        # What `cors` has the answer say of origins; None where it has no say.
        self.cors: tuple[tuple[str, str], ...] | None = None
        # As the client named it in `x-request-id`, if that is a plain word, else anew.
        self.id = head.given_id or new_id()

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def path(self) -> bytes:
        return self.head.path

    def values(self, name: bytes) -> Sequence[bytes]:
        """Give the values of a header, by its lower-case name, in the order they came."""
        return self.head.values(name)

    def body(self) -> bytes:
        if len(self.chunks) > 1:
            self.chunks = [b"".join(self.chunks)]
        return self.chunks[0] if self.chunks else b""


class RequestParser:
    """Turns a client's bytes into requests. After a `Refusal` the connection cannot go on.

    `known` is shared by all connections of a process: clients of one kind send the same heads.
    """

    __slots__ = (
        "_body_bytes",
        "_fed",
        "_head",
        "_head_bytes",
        "_in_head",
        "_in_message",
        "_known",
        "_left",
        "_max_body",
        "_parser",
        "_refusal",
        "_request",
        "_resuming",
        "requests",
    )

    def __init__(self, max_body: int, known: KnownHeads[RequestHead]) -> None:
        self._max_body = max_body
        self._known = known
        # Made when it is needed: most connections that wait for a request never have one.
        self._parser: httptools.HttpRequestParser | None = None
        self._head = RequestHead()
        self._request: Request | None = None
        self._in_message = False
        self._in_head = True
        self._head_bytes = 0
        self._body_bytes = 0
        # Bytes to come of the body of a request whose head was known.
        self._left = 0
        self._refusal: Refusal | None = None
        self._resuming = False
        self._fed = b""
        self.requests: deque[Request] = deque()

    @property
    def started(self) -> bool:
        """Some bytes of a request have come that is not complete yet."""
        return self._head_bytes > 0 or self._in_message or self._left > 0

    def feed(self, data: bytes) -> None:
        """Take the client's next bytes; raises `Refusal` for what cannot be accepted.

        Complete requests before the bad bytes are answered first: then the refusal waits for
        `raise_refusal`.
        """
        try:
            while data and (known := self._feed_known(data)):
                data = data[known:]
            if data:
                self._feed_unknown(data)
        except Refusal as refusal:
            self._refusal = refusal
            if not self._whole_requests():
                raise

    def raise_refusal(self) -> None:
        """Raise what `feed` found behind the requests that have been answered since."""
        if self._refusal is not None:
            raise self._refusal

    def _whole_requests(self) -> bool:
        return bool(self.requests) and self.requests[0].complete

    def _feed_known(self, data: bytes) -> int:
        """Take a request whose head is known, or more of its body; gives how many bytes that was."""
        if self._left:
            return self._take_body(data)
        if self._in_message or self._head_bytes:
            return 0
        part = cut(data)
        if part is None or (head := self._known.get(part[0])) is None:
            return 0
        size, length = part[1], part[2] or 0
        if length > self._max_body:
            return 0  # refused where all others are
        request = Request(head)
        self.requests.append(request)
        if len(data) - size >= length:  # all of it is here, as nearly always
            if length:
                request.chunks.append(data[size : size + length])
                request.body_size = length
            request.complete = True
            return size + length
        self._request = request
        self._left = length
        return size + self._take_body(data[size:])

    def _take_body(self, data: bytes) -> int:
        request = self._require_request()
        if len(data) > self._left:
            data = data[: self._left]
        self._left -= len(data)
        if data:
            request.chunks.append(data)
            request.body_size += len(data)
        request.complete = not self._left
        return len(data)

    def _feed_unknown(self, data: bytes) -> None:
        """Have llhttp parse, and remember a head that is likely to come again."""
        before = None if self.started else len(self.requests)
        self._feed(data)
        if before is not None and len(self.requests) > before:
            head = self.requests[before].head
            part = cut(data)
            if part is not None and head.may_recur:
                self._known.learn(part[0], head)

    def _feed(self, data: bytes) -> None:
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        self._fed = data
        if self._in_head:
            self._head_bytes += len(data)
        else:
            self._body_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._resume_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            raise self._refusal or _syntax_refusal(error) from None
        if self._in_head and self._head_bytes > MAX_HEAD:
            raise Refusal(431, "headers_too_large", f"Request headers exceed {MAX_HEAD} bytes", close=True)
        if not self._in_head:
            self._check_overhead()

    def _check_overhead(self) -> None:
        """Refuse a body that is mostly chunk sizes, extensions or trailers (one-byte chunks take 6:1)."""
        body_size = self._require_request().body_size
        if self._body_bytes > MAX_HEAD + 8 * body_size:
            raise self._too_large()

    def _resume_without_upgrade(self, rest: bytes) -> None:
        """Go on after a head with `Upgrade`, which llhttp takes for the end of HTTP.

        RFC 9110 section 7.8: a server may ignore Upgrade. The body is read by a new parser that is
        told the same framing and nothing else.
        """
        request = self._require_request()
        framing = b"".join(
            b"%s: %s\r\n" % pair for pair in request.head.headers if pair[0].lower() in _FRAMING_HEADERS
        )
        self._parser = httptools.HttpRequestParser(self)
        self._resuming = True
        request.complete = False
        self._feed(b"POST / HTTP/1.1\r\nHost: resumed\r\n" + framing + b"\r\n" + rest)

    # What follows is called by llhttp.

    def on_message_begin(self) -> None:
        self._in_message = True
        if not self._resuming:
            self._head = RequestHead()
            self._in_head = True

    def on_url(self, part: bytes) -> None:
        if self._resuming:
            return
        self._head.target += part
        if len(self._head.target) > MAX_TARGET:
            self._refuse(414, "uri_too_long", f"The request target exceeds {MAX_TARGET} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._resuming or not self._in_head:
            return  # a trailer field: nothing here may act on it (RFC 9110 section 6.5.1)
        if len(name) + len(value) > MAX_HEADER:
            self._refuse(431, "headers_too_large", f"A request header exceeds {MAX_HEADER} bytes")
        if len(self._head.headers) >= MAX_HEADERS:
            self._refuse(431, "too_many_headers", f"More than {MAX_HEADERS} request headers")
        self._head.add(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            self._begin_body()
            return
        head, parser = self._head, self._parser
        assert parser is not None  # noqa: S101 - it is the caller
        try:
            head.method = parser.get_method()
            # llhttp takes RTSP too, which shares this one method, and does not say which it was.
            if head.method == b"OPTIONS" and b" RTSP/" in self._fed:
                raise _bad("Only HTTP is spoken here")
            _check_head(head, parser.get_http_version())
            head.keep_alive = head.http_1_1 and parser.should_keep_alive()
            length = head.values(b"content-length")
            if length and int(length[0]) > self._max_body:
                raise self._too_large()
        except Refusal as refusal:
            self._refusal = refusal
            raise
        self._begin_body()
        self._request = Request(head)
        self.requests.append(self._request)

    def _begin_body(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._body_bytes = 0

    def on_body(self, data: bytes) -> None:
        request = self._require_request()
        request.body_size += len(data)
        if request.body_size > self._max_body:
            self._refusal = self._too_large()
            raise self._refusal
        request.chunks.append(data)

    def on_message_complete(self) -> None:
        self._require_request().complete = True
        self._in_message = False
        self._in_head = True

    def _require_request(self) -> Request:
        assert self._request is not None  # noqa: S101 - a head comes before a body
        return self._request

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._refusal = Refusal(status, code, message, close=True)
        raise self._refusal

    def _too_large(self) -> Refusal:
        return Refusal(
            413, "request_too_large", f"The request body exceeds {self._max_body} bytes", close=True
        )


def _syntax_refusal(error: httptools.HttpParserError) -> Refusal:
    if "overflow" in str(error).lower() and "content-length" in str(error).lower():
        return Refusal(413, "request_too_large", "The Content-Length is beyond any limit", close=True)
    return Refusal(400, "bad_request", "The request is not valid HTTP/1.1", close=True)


def _bad(message: str, status: int = 400, code: str = "bad_request") -> Refusal:
    return Refusal(status, code, message, close=True)


def _check_head(head: RequestHead, version: str) -> None:
    """Apply what llhttp leaves open, and note what follows from it; raises `Refusal`."""
    if version not in ("1.1", "1.0"):
        raise _bad(f"HTTP/{version} is not spoken here", 505, "http_version_not_supported")
    head.http_1_1 = version == "1.1"
    if head.method not in METHODS:
        raise _bad("This method is not allowed here", 405, "method_not_allowed")
    _check_framing(head)
    hosts = head.values(b"host")
    if len(hosts) > 1 or (head.http_1_1 and not hosts):
        raise _bad("Exactly one Host header is required")
    expect = [value.lower() for value in head.values(b"expect")]
    if expect and (expect != [b"100-continue"] or not head.http_1_1):
        raise _bad("This expectation cannot be met", 417, "expectation_failed")
    head.expects_continue = bool(expect)
    head.target = _origin_form(head.target)
    head.path = check_path(head.target.partition(b"?")[0])
    ids = head.values(b"x-request-id")
    if len(ids) == 1 and 0 < len(ids[0]) <= MAX_ID and ids[0].translate(None, b"-_.:").isalnum():
        head.given_id = ids[0]


def _check_framing(head: RequestHead) -> None:
    encodings = head.values(b"transfer-encoding")
    if not encodings:
        return
    if not head.http_1_1:
        raise _bad("Transfer-Encoding does not exist in HTTP/1.0")
    if head.values(b"content-length"):
        raise _bad("Content-Length and Transfer-Encoding exclude each other")
    codings = [word.strip().lower() for value in encodings for word in value.split(b",")]
    if any(coding != b"chunked" for coding in codings):
        raise _bad("Only the transfer coding 'chunked' is understood", 501, "not_implemented")
    if len(codings) > 1:
        raise _bad("The transfer coding 'chunked' was named twice")


def _origin_form(target: bytes) -> bytes:
    """Reduce an absolute-form target to path and query: requests are routed by path alone."""
    if target == b"*":
        raise _bad("OPTIONS * is not answered here", 405, "method_not_allowed")
    if not target.startswith(b"/"):
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise _bad("The request target is not a path")
        target = rest[len(_AUTHORITY.match(rest)[0]) :]  # type: ignore[index]  # matches anything
        if not target.startswith(b"/"):
            target = b"/" + target
    if b"#" in target:
        raise _bad("The request target has a fragment")
    return target


def check_path(raw: bytes) -> bytes:
    """Decode a path, refusing every spelling that a rule and a worker could read differently.

    Raises `Refusal` for dot segments, empty segments, encoded slashes, back slashes, control
    characters and broken percent signs; the path that passes means the same to both.
    """
    if _BROKEN_PERCENT.search(raw):
        raise _bad("The path has a broken percent sign")
    if b"%2f" in raw.lower() or b"%25" in raw:
        raise _bad("The path has an encoded slash or percent sign")
    path = unquote_to_bytes(raw)
    segments = path.split(b"/")
    unclear = any(part in path for part in _BAD_IN_PATH) or b"." in segments or b".." in segments
    if unclear or any(byte < 32 or byte == 127 for byte in path):
        raise _bad("The path is not in its plain form")
    return path
