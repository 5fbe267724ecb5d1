"""The head of a worker's answer: parsed strictly, stripped of what concerns one connection only."""

from __future__ import annotations

import httptools

from vllm_stack.proxy.failures import BadAnswer
from vllm_stack.proxy.framing import Chunked, Dechunked, Framing, Length, UntilClose
from vllm_stack.proxy.request import Request

MAX_HEAD = 65536
# RFC 9110 section 7.6.1; the length and the coding are set anew by `head_for`.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_BODILESS = frozenset({204, 304})


class AnswerHead:
    """Status, headers and framing of one answer."""

    def __init__(self, head: bytes) -> None:
        """Parse a head that ends with its empty line; raises `BadAnswer`."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self._complete = False
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserError as error:
            # A body follows in the next read: llhttp sees none here, so this is about the head.
            raise BadAnswer(f"The worker's answer is not HTTP: {error}") from None
        if not self._complete:
            raise BadAnswer("The worker's answer is not HTTP")
        self.status: int = parser.get_status_code()
        self.http_1_1: bool = parser.get_http_version() == "1.1"
        self.chunked = False
        self.length: int | None = None
        self._named_by_connection: set[bytes] = set()
        self._read_framing()
        self.keeps_alive = self.http_1_1 and b"close" not in self._named_by_connection

    # Called by llhttp.

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self._complete = True

    def _read_framing(self) -> None:
        for name, value in self.headers:
            name = name.lower()
            if name == b"transfer-encoding":
                if value.strip().lower() != b"chunked" or self.chunked:
                    raise BadAnswer("The worker's answer has a transfer coding that is not understood")
                self.chunked = True
            elif name == b"content-length":
                if self.length is not None or not value.isdigit():
                    raise BadAnswer("The worker's answer has no clear length")
                self.length = int(value)
            elif name == b"connection":
                self._named_by_connection |= {word.strip().lower() for word in value.split(b",")}
        if self.chunked and (self.length is not None or not self.http_1_1):
            raise BadAnswer("The worker's answer has two framings")

    def content_type(self) -> bytes:
        for name, value in self.headers:
            if name.lower() == b"content-type":
                return value.partition(b";")[0].strip().lower()
        return b""

    @property
    def is_events(self) -> bool:
        return self.content_type() == b"text/event-stream"

    def has_no_body(self, method: bytes) -> bool:
        return method == b"HEAD" or self.status in _BODILESS

    def framing_for(self, request: Request) -> Framing:
        """Choose how the body of this answer is passed on to this client."""
        if self.has_no_body(request.method):
            return Length(0)
        if self.chunked:
            return Chunked(self.is_events) if request.http_1_1 else Dechunked(self.is_events)
        return Length(self.length) if self.length is not None else UntilClose(request.http_1_1)

    def head_for(self, request: Request, keep_alive: bool) -> bytes:
        """Give the head as the client gets it."""
        dropped = HOP_BY_HOP | self._named_by_connection | {b"content-length", b"x-request-id"}
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.reason)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0].lower() not in dropped]
        if self.length is not None and self.status != 204:
            lines.append(b"content-length: %d" % self.length)
        elif request.http_1_1 and not self.has_no_body(request.method):
            lines.append(b"transfer-encoding: chunked")
        if self.is_events:
            lines.append(b"x-accel-buffering: no")  # an nginx in front of us must not collect events
        lines.append(b"x-request-id: " + request.id)
        if not keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n"
