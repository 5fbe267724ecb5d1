"""A fake vLLM that answers at once: `python -m benchmarks.backend --port 5001`.

It says what vLLM says on the wire, and does nothing else, so that it is never what is measured:
a uvloop protocol, every answer made beforehand. A streamed answer has one SSE event per chunk,
`max_tokens` of them (100 where the request names none), `--gap` milliseconds apart, the first one
at once, then `data: [DONE]` and the last chunk.

`GET /fake/stats` counts what was answered; `GET /fake/gap/MS` changes the gap of later streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import signal
import socket
from functools import lru_cache
from typing import NamedTuple, cast

from benchmarks import dialect

_MAX_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked")
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close")


class Counters:
    """What one backend has answered, and how fast it streams."""

    def __init__(self, gap: float) -> None:
        self.gap = gap
        self.requests = 0
        self.events = 0
        self.broken = 0
        self.unknown: set[str] = set()

    def as_json(self) -> bytes:
        return json.dumps(
            {
                "requests": self.requests,
                "events": self.events,
                "broken": self.broken,
                "unknown": sorted(self.unknown),
            }
        ).encode()


class RequestHead(NamedTuple):
    """What matters of a request's head; without a length the body is chunked."""

    target: bytes
    is_chat: bool
    length: int | None
    closes: bool


# A client sends the same head again and again.
@lru_cache(maxsize=1024)
def read_head(head: bytes) -> RequestHead:
    method, target, _ = head.split(b" ", 2)
    head = head.lower()
    length = _LENGTH.search(head)
    return RequestHead(
        target,
        method == b"POST" and target == b"/v1/chat/completions",
        int(length[1]) if length else None if _CHUNKED.search(head) else 0,
        _CLOSE.search(head) is not None,
    )


class Connection(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, counters: Counters) -> None:
        self._loop = loop
        self._counters = counters
        self._data = b""
        self._transport: asyncio.Transport
        self._stream: _Stream | None = None
        self._closing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._counters.broken += 1

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        while self._stream is None and self._data and not self._closing and self._take_request():
            pass

    def stream_ended(self) -> None:
        """Go on after a streamed answer."""
        self._stream = None
        if self._closing:
            self._transport.close()
        elif self._data:
            self.data_received(b"")

    def _take_request(self) -> bool:
        """Answer the first request in the buffer; false if it is not whole yet."""
        data = self._data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            return False
        head = read_head(data[:end])
        if head.length is not None:
            stop = end + head.length
            if len(data) < stop:
                return False
            body = data[end:stop]
        else:
            whole = dialect.dechunk(data, end)
            if whole is None:
                return False
            body, stop = whole
        self._data = data[stop:]
        self._closing = head.closes
        self._answer(head, body)
        return True

    def _answer(self, head: RequestHead, body: bytes) -> None:
        if head.is_chat:
            self._counters.requests += 1
            if b'"stream"' in body and _STREAM.search(body):
                named = _MAX_TOKENS.search(body)
                events = int(named[1]) if named else dialect.DEFAULT_EVENTS
                self._stream = _Stream(self._loop, self._transport, self, self._counters, events)
                return
            self._transport.write(dialect.COMPLETION)
        else:
            self._transport.write(self._inform(head.target))
        if self._closing:
            self._transport.close()

    def _inform(self, target: bytes) -> bytes:
        path = target.partition(b"?")[0]
        if path == b"/fake/stats":
            return dialect.whole(self._counters.as_json())
        if path.startswith(b"/fake/gap/"):
            self._counters.gap = float(path.rpartition(b"/")[2]) / 1000
            return dialect.whole(b"{}")
        answer = dialect.GET.get(path)
        if answer is None:
            self._counters.unknown.add(path.decode("latin-1"))
            return dialect.NOT_FOUND
        return answer


class _Stream:
    """One streamed answer; events keep to their times, however late one of them was."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        connection: Connection,
        counters: Counters,
        events: int,
    ) -> None:
        self._loop, self._transport, self._connection = loop, transport, connection
        self._counters = counters
        self._chunks = dialect.chunks(events)
        self._sent = 0
        self._gap = counters.gap
        self._start = loop.time()
        # vLLM sends the head before the first event: two packets.
        transport.write(dialect.STREAM_HEAD)
        self._timer: asyncio.Handle = loop.call_soon(self._send)

    def cancel(self) -> None:
        self._timer.cancel()

    def _send(self) -> None:
        if self._sent < len(self._chunks):
            self._transport.write(self._chunks[self._sent])
            self._sent += 1
            self._counters.events += 1
        if self._sent < len(self._chunks):
            self._timer = self._loop.call_at(self._start + self._sent * self._gap, self._send)
        else:
            self._transport.write(dialect.STREAM_END)
            self._connection.stream_ended()


async def serve(port: int, uds: str | None, gap: float) -> None:
    """Serve on loopback, and on a unix socket if one is named, until a signal says stop."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    counters = Counters(gap)
    listener = socket.create_server(("127.0.0.1", port), backlog=8192)
    servers = [await loop.create_server(lambda: Connection(loop, counters), sock=listener, backlog=8192)]
    if uds is not None:
        servers.append(await loop.create_unix_server(lambda: Connection(loop, counters), uds, backlog=8192))
    print(f"listening on {listener.getsockname()[1]}", flush=True)
    await stop.wait()
    for server in servers:
        server.close()
    # Open streams are of no interest to anybody any more.
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description="A fake vLLM that is never what is measured")
    parser.add_argument("--port", type=int, default=0, help="0: the system chooses one, and it is printed")
    parser.add_argument("--uds", help="a unix socket to listen on, too")
    parser.add_argument("--gap", type=float, default=10, help="milliseconds between streamed events")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import uvloop  # here, so that the texts can be had without it

    uvloop.run(serve(options.port, options.uds, options.gap / 1000))


if __name__ == "__main__":
    main()
