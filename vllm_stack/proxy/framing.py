"""Where an answer ends, and what of it may be passed on now.

The end is what the framing says (RFC 9112 section 6), never what the last bytes look like: a token
can be `0\\r\\n\\r\\n`. A framing takes the worker's bytes as they come and gives the bytes to send;
most of the time that is the very object it was given.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools

from vllm_stack.proxy.failures import Aborted, BadAnswer

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_MAX_SIZE_LINE = 256
_MAX_TRAILER = 16384
# An SSE event larger than this is passed on in parts: memory stays bounded.
_MAX_HELD_EVENT = 1024 * 1024
# A JSON string cannot hold these bytes: inside one the quotes would be escaped.
ABORT = b'"finish_reason":"abort"'


class Framing(Protocol):
    """One answer's framing. `done` after its last byte; `clean` unless the worker sent more than it."""

    done: bool
    clean: bool

    def feed(self, data: bytes) -> bytes:
        """Take the worker's next bytes, give the client's; raises `UpstreamFailure`."""
        ...

    def end(self) -> bytes:
        """Take the worker's clean end of connection; raises `BadAnswer` if it came too early."""
        ...

    def event(self, event: bytes) -> bytes:
        """Give an SSE event of our own as it can stand here; empty where none can."""
        ...


class Length:
    """An answer with Content-Length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.clean = True

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            self.clean = False
            data = data[: self._left]
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def end(self) -> bytes:
        raise BadAnswer("The worker's answer ended before its Content-Length")

    def event(self, event: bytes) -> bytes:
        return b""


class Chunked:
    """A chunked answer to an HTTP/1.1 client: passed on in the chunks it came in.

    Where `events` is set (text/event-stream) only whole events go out, so that an error event can
    follow if the worker dies. vLLM writes one event per chunk, so nothing is held in the usual case.
    """

    def __init__(self, events: bool) -> None:
        self._events = events
        self._held = b""
        # Bytes to come of a chunk whose beginning went out already, its CRLF included.
        self._left = 0
        self.done = False
        self.clean = True

    def feed(self, data: bytes) -> bytes:
        if self._held:
            data = self._held + data
        if self._events and ABORT in data:
            raise Aborted("The worker was stopped while it answered")
        whole = self._walk(data)
        if whole == len(data):
            self._held = b""
            return data
        if self.done:
            self.clean, self._held = False, b""
        else:
            self._held = data[whole:]
        return data[:whole]

    def end(self) -> bytes:
        raise BadAnswer("The worker's answer ended before its last chunk")

    def event(self, event: bytes) -> bytes:
        """Wrap an event of our own as a chunk; nothing where one cannot begin."""
        return b"" if self._left else b"%x\r\n%s\r\n" % (len(event), event)

    def _walk(self, data: bytes) -> int:
        """Give the end of what may go out: whole chunks, and for events whole events."""
        length = len(data)
        position = self._left
        if position:
            if length < position:
                passed = max(0, min(length, position - 2))
                self._left -= passed
                return passed
            _expect_crlf(data, position - 2)
            self._left = 0
        whole = position
        while position < length:
            eol = data.find(b"\r\n", position, position + _MAX_SIZE_LINE)
            if eol < 0:
                if length - position >= _MAX_SIZE_LINE:
                    raise BadAnswer("The worker sent a chunk size without end")
                break
            size = _chunk_size(data[position:eol])
            if size == 0:
                end = _trailer_end(data, eol + 2)
                self.done = end > 0
                return end if self.done else whole
            end = eol + 2 + size
            if end + 2 > length:
                return self._part(length, end, whole)
            _expect_crlf(data, end)
            position = end + 2
            if not self._events or data[end - 2 : end] == b"\n\n":
                whole = position
        return whole

    def _part(self, length: int, end: int, whole: int) -> int:
        """Decide on a chunk that is not all there: events wait for their end, other bytes do not."""
        if self._events and length - whole < _MAX_HELD_EVENT:
            return whole
        passed = min(length, end)
        self._left = end + 2 - passed
        return passed


class Dechunked:
    """A chunked answer to an HTTP/1.0 client, which knows no chunks: its end is our close."""

    def __init__(self) -> None:
        self._payload: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        self.done = False
        self.clean = True

    def on_body(self, data: bytes) -> None:
        self._payload.append(data)

    def on_message_complete(self) -> None:
        self.done = True

    def feed(self, data: bytes) -> bytes:
        if ABORT in data:
            raise Aborted("The worker was stopped while it answered")
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self.done:
                raise BadAnswer("The worker sent chunks that are none") from None
            self.clean = False
        payload = b"".join(self._payload)
        self._payload.clear()
        return payload

    def end(self) -> bytes:
        raise BadAnswer("The worker's answer ended before its last chunk")

    def event(self, event: bytes) -> bytes:
        return event


class UntilClose:
    """An answer that ends with the worker's connection; an HTTP/1.1 client gets it in chunks.

    So a clean end has a last chunk and a cut one has none, which the client could not tell apart
    if we passed the missing framing on.
    """

    def __init__(self, chunk: bool) -> None:
        self._chunk = chunk
        self.done = False
        self.clean = False  # such a connection is over in any case

    def feed(self, data: bytes) -> bytes:
        return self.event(data)

    def end(self) -> bytes:
        self.done = True
        return b"0\r\n\r\n" if self._chunk else b""

    def event(self, event: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(event), event) if self._chunk else event


_known_sizes: dict[bytes, int] = {}


def _chunk_size(line: bytes) -> int:
    """Read a chunk-size line strictly: `int` alone would take "+3", "0x3" and "1_0"."""
    size = _known_sizes.get(line)
    if size is None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise BadAnswer("The worker sent a chunk size that is none")
        size = int(match[1], 16)
        if len(_known_sizes) < 4096:
            _known_sizes[line] = size
    return size


def _expect_crlf(data: bytes, position: int) -> None:
    if data[position : position + 2] != b"\r\n":
        raise BadAnswer("The worker sent a chunk longer than its size")


def _trailer_end(data: bytes, position: int) -> int:
    """Give the end of the trailer section that begins at `position`, -1 if it is not all there."""
    if data[position : position + 2] == b"\r\n":
        return position + 2
    end = data.find(b"\r\n\r\n", position)
    if end < 0 and len(data) - position > _MAX_TRAILER:
        raise BadAnswer("The worker sent a trailer without end")
    return end + 4 if end >= 0 else -1
