"""The head of a worker's answer: parsed strictly, stripped of what concerns one connection only."""

from __future__ import annotations

from collections.abc import Iterable

import httptools
from msgspec import Struct

from vllm_stack.proxy import cors
from vllm_stack.proxy.failures import BadAnswer
from vllm_stack.proxy.framing import Chunked, Dechunked, Framing, Length, UntilClose
from vllm_stack.proxy.known_heads import KnownHeads, cut
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
# A worker's heads differ by their date only, which is new every second.
_known: KnownHeads[AnswerHead] = KnownHeads(256)


class AnswerHead:
    """Status, headers and framing of one answer; all but the number of its Content-Length.

    The same bytes make the same head: it is not changed once it was parsed.
    """

    __slots__ = (
        "_complete",
        "_named_by_connection",
        "bodiless",
        "chunked",
        "headers",
        "http_1_1",
        "is_events",
        "keeps_alive",
        "kept",
        "length",
        "reason",
        "status",
    )

    def __init__(self, head: bytes) -> None:
        """Parse a head that ends with its empty line; raises `BadAnswer`."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.reason = b""
        self._complete = False
        parser = httptools.HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass  # a 101: the bytes behind this head are no HTTP
        except httptools.HttpParserError as error:
            # A body follows in the next read: llhttp sees none here, so this is about the head.
            raise BadAnswer(f"The worker's answer is not HTTP: {error}") from None
        if not self._complete:
            raise BadAnswer("The worker's answer is not HTTP")
        self.status: int = parser.get_status_code()
        self.http_1_1: bool = parser.get_http_version() == "1.1"
        self.bodiless = self.status in _BODILESS
        self.chunked = False
        self.length: int | None = None
        self._named_by_connection: set[bytes] = set()
        self._read_framing()
        self.keeps_alive = self.http_1_1 and b"close" not in self._named_by_connection
        self.is_events = self._content_type() == b"text/event-stream"
        # The lines a client gets as they are, and those that follow from them.
        self.kept = self.lines_of(self.headers)

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

    def _content_type(self) -> bytes:
        for name, value in self.headers:
            if name.lower() == b"content-type":
                return value.partition(b";")[0].strip().lower()
        return b""

    def lines_of(self, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Give the status line and what a client gets of these headers."""
        dropped = HOP_BY_HOP | self._named_by_connection | {b"content-length", b"x-request-id"}
        lines = [b"HTTP/1.1 %d %s" % (self.status, self.reason)]
        lines += [b"%s: %s" % pair for pair in headers if pair[0].lower() not in dropped]
        if self.is_events:
            lines.append(b"x-accel-buffering: no")  # an nginx in front of us must not collect events
        return b"\r\n".join(lines) + b"\r\n"


class Answer(Struct):
    """One answer: its head, and how long its body is if the head says so."""

    head: AnswerHead
    length: int | None

    def has_no_body(self, method: bytes) -> bool:
        return self.head.bodiless or method == b"HEAD"

    def framing_for(self, request: Request) -> Framing:
        """Choose how the body of this answer is passed on to this client."""
        if self.has_no_body(request.head.method):
            return Length(0)
        if self.length is not None:
            return Length(self.length)
        if not self.head.chunked:
            return UntilClose(request.head.http_1_1)
        return Chunked(self.head.is_events) if request.head.http_1_1 else Dechunked(self.head.is_events)

    def head_for(self, request: Request, keep_alive: bool) -> bytes:
        """Give the head as the client gets it."""
        kept, framing = self.head.kept, b""
        if request.cors is not None:
            kept = self.head.lines_of(cors.replace(self.head.headers, request.cors))
        if self.length is not None:
            if self.head.status != 204:
                framing = b"content-length: %d\r\n" % self.length
        elif request.head.http_1_1 and not self.has_no_body(request.head.method):
            framing = b"transfer-encoding: chunked\r\n"
        end = b"\r\n\r\n" if keep_alive else b"\r\nconnection: close\r\n\r\n"
        return b"".join((kept, framing, b"x-request-id: ", request.id, end))


def read_answer(data: bytes) -> tuple[Answer, int] | None:
    """Read the head that `data` begins with; None if its end has not come yet.

    Gives the answer and where its body begins. Raises `BadAnswer` for what is no HTTP, or endless.
    """
    part = cut(data)
    if part is not None and (known := _known.get(part[0])) is not None:
        return Answer(known, part[2]), part[1]
    end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
    if end < 0:
        if len(data) >= MAX_HEAD:
            raise BadAnswer(f"The head of the worker's answer exceeds {MAX_HEAD} bytes")
        return None
    head = AnswerHead(data[: end + 4])
    # An interim head names what it is for, such as the key of a WebSocket: it does not come again.
    if part is not None and part[2] == head.length and head.status >= 200:
        _known.learn(part[0], head)
    return Answer(head, head.length), end + 4
