"""Reading requests with llhttp's strict parser.

llhttp refuses bad syntax, Content-Length beside Transfer-Encoding, and a second Content-Length.
Left to us are the rules of `request_head.check_head`, all sizes, and what to do with an Upgrade.
Several requests may arrive in one read (pipelining): they queue up in order.
"""

from __future__ import annotations

from collections import deque

import httptools

from vllm_stack.proxy.handshake import asks_tunnel
from vllm_stack.proxy.known_heads import KnownHeads, cut
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead, bad_request, check_head
from vllm_stack.proxy.routes import Route

MAX_TARGET = 4094
MAX_HEADERS = 100
MAX_HEADER = 8190
MAX_HEAD = 65536
_FRAMING_HEADERS = frozenset({b"transfer-encoding", b"content-length"})


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
        "behind",
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
        # What has come behind a request for a tunnel, which is the last one.
        self.behind = b""
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
                request.body = data[size : size + length]
                request.body_size = length
            request.complete = True
            return size + length
        request.length = length
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
        if not self._left:
            request.finish()
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
            self._leave_http(data[upgrade.args[0] :])
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

    def _leave_http(self, rest: bytes) -> None:
        """Go by a head with `Upgrade`: for a tunnel, this connection carries no further request."""
        head = self._require_request().head
        if not asks_tunnel(head):
            self._resume_without_upgrade(rest)
            return
        head.route, head.keep_alive = Route.TUNNEL, False
        self.behind = rest

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
                raise bad_request("Only HTTP is spoken here")
            check_head(head, parser.get_http_version())
            head.keep_alive = head.http_1_1 and parser.should_keep_alive()
            length = head.values(b"content-length")
            if length and int(length[0]) > self._max_body:
                raise self._too_large()
        except Refusal as refusal:
            self._refusal = refusal
            raise
        self._begin_body()
        self._request = Request(head)
        self._request.length = int(length[0]) if length else None
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
        self._require_request().finish()
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
