"""Asks the servers of a way, over connections that are kept, and notes what came when."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import aiohttp
import msgspec

from vllm_stack.bench.asking import Asking
from vllm_stack.bench.sample import Sample
from vllm_stack.bench.stream import TimedStream
from vllm_stack.bench.way import Server, Way
from vllm_stack.terminal_text import printable

SILENCE = 300.0  # seconds until a request counts as failed
# vLLM hangs up on a connection that was idle for 5 s: one that we send on must be younger.
_IDLE = 2.0
_DETAIL = 200  # characters


class Caller:
    """Clients of one way; each request goes to the server that has the fewest of ours, in turn if several."""

    def __init__(self, way: Way, clock: Callable[[], float] = time.perf_counter) -> None:
        self.way = way
        self._clock = clock
        self._sessions: dict[Server, aiohttp.ClientSession] = {}
        self._open: Counter[Server] = Counter()
        self._sent: Counter[Server] = Counter()
        self._held = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for server in self.way.servers:
            session = aiohttp.ClientSession(
                connector=_connector(server),
                headers=server.headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=SILENCE),
            )
            self._sessions[server] = await self._held.enter_async_context(session)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._held.aclose()

    async def ask(self, asking: Asking, prompt: str) -> Sample:
        """Send one request and give what became of it; whatever goes wrong with it is in the sample."""
        server = min(self.way.servers, key=lambda one: (self._open[one], self._sent[one]))
        self._open[server] += 1
        self._sent[server] += 1
        try:
            return await self._ask(server, asking.path, asking.body(prompt))
        finally:
            self._open[server] -= 1

    async def _ask(self, server: Server, path: str, body: bytes) -> Sample:
        stream = TimedStream()
        begun = self._clock()
        try:
            async with self._sessions[server].post(server.url + path, data=body) as response:
                if response.status != 200:
                    return _refused(server, response.status, await response.read())
                async for piece in response.content.iter_any():
                    stream.feed(piece, self._clock() - begun)
            return _sample(server, stream, stream.fault())
        except (OSError, aiohttp.ClientError) as error:
            return _sample(server, stream, stream.fault(_fault_of(error)))


def _connector(server: Server) -> aiohttp.BaseConnector:
    if server.socket is not None:
        return aiohttp.UnixConnector(server.socket, limit=0, keepalive_timeout=_IDLE)
    # The door is the very address that the stack's proxy is bound to; its certificate is for other names.
    return aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE, ssl=False)


def _sample(server: Server, stream: TimedStream, fault: tuple[str, str] | None) -> Sample:
    kind, detail = fault or (None, "")
    usage = stream.usage
    return Sample(
        server.name,
        stream.first,
        stream.last,
        tuple(stream.gaps),
        None if usage is None else usage.prompt_tokens,
        None if usage is None else usage.completion_tokens,
        kind,
        _short(detail),
    )


def _fault_of(error: Exception) -> tuple[str, str]:
    if isinstance(error, TimeoutError):
        return "silence", f"nothing came for {SILENCE:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection", str(error)
    return "cut off", str(error) or type(error).__name__


class _Refusal(msgspec.Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Refused(msgspec.Struct):
    error: _Refusal | str = ""


def _refused(server: Server, status: int, body: bytes) -> Sample:
    """Name an error by its status and OpenAI's code, or the type where the code is the status again."""
    try:
        told = msgspec.json.decode(body, type=_Refused).error
    except (ValueError, RecursionError):
        told = ""
    if isinstance(told, str):
        return Sample(server.name, error=str(status), detail=_short(told))
    word = told.code if isinstance(told.code, str) else told.type
    return Sample(server.name, error=_short(f"{status} {word or ''}".strip()), detail=_short(told.message))


def _short(text: str) -> str:
    return printable(text if len(text) <= _DETAIL else text[:_DETAIL] + "...")
