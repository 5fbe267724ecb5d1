"""Where an answer ends, and what of it may be passed on now.

The end is what the framing says (RFC 9112 section 6), never what the last bytes look like: a token
can be `0\\r\\n\\r\\n`. A framing takes the worker's bytes as they come and gives the bytes to send;
most of the time that is the very object it was given.
"""

from __future__ import annotations

import re
from typing import Protocol

import httptools

from vllm_stack.proxy.failures import Aborted, BadAnswer, UpstreamFailure

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")
_MAX_SIZE_LINE = 256
# An empty line, in every spelling of line ends that the standard has (WHATWG HTML section 9.2.5).
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n")
_MAX_TRAILER = 16384
# An SSE event larger than this is passed on in parts: memory stays bounded.
_MAX_HELD_EVENT = 1024 * 1024
STOPPED = "The worker was stopped while it answered"
# A JSON string cannot hold these bytes: inside one the quotes would be escaped.
ABORT = b'"finish_reason":"abort"'
# What vLLM says with a 500 to whom its engine died under (vllm/v1/engine/exceptions.py).
ENGINE_DEAD = b"EngineCore encountered an issue"


class Framing(Protocol):
    """One answer's framing.

    `done` after its last byte, `clean` unless the worker sent more than it; `failure` once it can
    never be done: it is raised after what `feed` gave has gone out. `straight` says that `feed` would
    pass on whole chunks of whole events as they are, and be the same after them.
    """

    done: bool
    clean: bool
    failure: UpstreamFailure | None

    @property
    def straight(self) -> bool: ...

    def feed(self, data: bytes) -> bytes:
        """Take the worker's next bytes, give the client's."""
        ...

    def end(self) -> bytes:
        """Take the worker's clean end of connection; raises `BadAnswer` if it came too early."""
        ...

    def event(self, event: bytes) -> bytes:
        """Give an SSE event of our own as it can stand here; empty where none can."""
        ...


class Length:
    """An answer with Content-Length."""

    straight = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.clean = True
        self.failure: UpstreamFailure | None = None

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
        # Where in `_held` the first chunk begins that was not walked yet.
        self._walked = 0
        # Bytes to come of a chunk whose beginning went out already, its CRLF included.
        self._left = 0
        self.done = False
        self.clean = True
        self.failure: UpstreamFailure | None = None

    @property
    def straight(self) -> bool:
        return not self._held and not self._left

    def feed(self, data: bytes) -> bytes:
        if not self._held and not self._left and data[-4:] == b"\n\n\r\n" and data.find(ABORT) < 0:
            # One chunk with one event, which is how vLLM sends nearly all: no need to walk.
            eol = data.find(b"\r\n", 0, 8)
            if _known_sizes.get(data[:eol]) == len(data) - eol - 4:
                return data
        if self._held:
            data = self._held + data
        whole = self._walk(data)
        if whole == len(data):
            self._held = b""
            self._walked = 0
            return data
        if self.done:
            self.clean, self._held = False, b""
        else:
            self._held = data[whole:]
            self._walked = max(0, self._walked - whole)
        return data[:whole]

    def end(self) -> bytes:
        raise BadAnswer("The worker's answer ended before its last chunk")

    def event(self, event: bytes) -> bytes:
        """Wrap an event of our own as a chunk; nothing where one cannot begin."""
        return b"" if self._left else b"%x\r\n%s\r\n" % (len(event), event)

    def _walk(self, data: bytes) -> int:
        """Give the end of what may go out: whole chunks, and for events whole events."""
        length = len(data)
        if self._left:
            if length < self._left:
                passed = max(0, min(length, self._left - 2))
                self._left -= passed
                return passed
            position = whole = self._left
            self._left = 0
            if not _is_crlf(data, position - 2):
                return self._fail(0, BadAnswer("The worker sent a chunk longer than its size"))
        else:
            position, whole = self._walked, 0
        aborting = self._events and ABORT in data
        while position < length:
            eol = data.find(b"\r\n", position, position + _MAX_SIZE_LINE)
            if eol < 0:
                if length - position >= _MAX_SIZE_LINE:
                    return self._fail(whole, BadAnswer("The worker sent a chunk size without end"))
                break
            size = _chunk_size(data[position:eol])
            if size is None:
                return self._fail(whole, BadAnswer("The worker sent a chunk size that is none"))
            if size == 0:
                end = _trailer_end(data, eol + 2)
                if end is None:
                    return self._fail(whole, BadAnswer("The worker sent a trailer without end"))
                self.done = end > 0
                return end if self.done else whole
            end = eol + 2 + size
            if end + 2 > length:
                break
            if not _is_crlf(data, end):
                return self._fail(whole, BadAnswer("The worker sent a chunk longer than its size"))
            if aborting and ABORT in data[eol:end]:
                return self._fail(whole, Aborted(STOPPED))
            position = end + 2
            if not self._events or data.endswith(_EVENT_ENDS, eol, end):
                whole = position
        return self._incomplete(data, position, whole)

    def _incomplete(self, data: bytes, position: int, whole: int) -> int:
        """Decide on what follows the last whole event: events wait for their end, other bytes do not."""
        self._walked = position
        if self._events and len(data) - whole < _MAX_HELD_EVENT:
            return whole
        eol = data.find(b"\r\n", position)
        if eol < 0:
            return position
        # Pass the beginning of a chunk that is not all there (its size was read in `_walk`).
        end = eol + 2 + (_chunk_size(data[position:eol]) or 0)
        passed = min(len(data), end)
        self._left = end + 2 - passed
        return passed

    def _fail(self, whole: int, failure: UpstreamFailure) -> int:
        """Let what was whole go out; the relay raises the failure after it."""
        self.failure = failure
        return whole


class Dechunked:
    """A chunked answer to an HTTP/1.0 client, which knows no chunks: its end is our close."""

    straight = False

    def __init__(self, events: bool) -> None:
        self._events = events
        self._payload = b""
        self.done = False
        self.clean = True
        self.failure: UpstreamFailure | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        if self.done:
            self.clean = False
        else:
            self._payload += data

    def on_message_begin(self) -> None:
        if self.done:
            self.clean = False

    def on_message_complete(self) -> None:
        self.done = True

    def feed(self, data: bytes) -> bytes:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.clean = False
            if not self.done:
                self.failure = BadAnswer("The worker sent chunks that are none")
        if self._events and ABORT in self._payload:
            self.failure = Aborted(STOPPED)
            self._payload = self._payload[: self._payload.index(ABORT)]
        whole = len(self._payload)
        if self._events and not self.done:
            whole = max(
                self._payload.rfind(end) + len(end) if end in self._payload else 0 for end in _EVENT_ENDS
            )
            if len(self._payload) - whole > _MAX_HELD_EVENT:
                whole = len(self._payload)
        out, self._payload = self._payload[:whole], self._payload[whole:]
        return out

    def end(self) -> bytes:
        raise BadAnswer("The worker's answer ended before its last chunk")

    def event(self, event: bytes) -> bytes:
        return event


class UntilClose:
    """An answer that ends with the worker's connection; an HTTP/1.1 client gets it in chunks.

    So a clean end has a last chunk and a cut one has none, which the client could not tell apart
    if we passed the missing framing on.
    """

    straight = False

    def __init__(self, chunk: bool) -> None:
        self._chunk = chunk
        self.done = False
        self.clean = False  # such a connection is over in any case
        self.failure: UpstreamFailure | None = None

    def feed(self, data: bytes) -> bytes:
        if ABORT in data:
            self.failure = Aborted(STOPPED)
            return b""
        return self.event(data)

    def end(self) -> bytes:
        self.done = True
        return b"0\r\n\r\n" if self._chunk else b""

    def event(self, event: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(event), event) if self._chunk else event


_known_sizes: dict[bytes, int] = {}


def _chunk_size(line: bytes) -> int | None:
    """Read a chunk-size line strictly: `int` alone would take "+3", "0x3" and "1_0"."""
    size = _known_sizes.get(line)
    if size is None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            return None
        size = int(match[1], 16)
        if len(_known_sizes) < 4096:
            _known_sizes[line] = size
    return size


def _is_crlf(data: bytes, position: int) -> bool:
    return data[position : position + 2] == b"\r\n"


def _trailer_end(data: bytes, position: int) -> int | None:
    """Give the end of the trailer section that begins at `position`: -1 if not all there, None if endless."""
    if _is_crlf(data, position):
        return position + 2
    end = data.find(b"\r\n\r\n", position)
    if end < 0 and len(data) - position > _MAX_TRAILER:
        return None
    return end + 4 if end >= 0 else -1
