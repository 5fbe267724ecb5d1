"""Clients in a process of their own: streams for a while, streams held open, idle connections.

    python -m benchmarks.load streams --port 8000 --streams 64 --warm 1.5 --seconds 5
    python -m benchmarks.load hold --port 8000 --streams 500
    python -m benchmarks.load idle --port 8000 --connections 2000

It writes one JSON object a line: `{"at": "start"}` when the measured window begins, `{"at": "end"}`
with what came within it, `{"at": "done"}` with everything else. `hold` and `idle` write
`{"at": "open"}` and end when their standard input does. Every answer is checked; one that is wrong
makes the exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from benchmarks.answer import Answer, fault_of_completion, fault_of_stream
from benchmarks.request import chat_request

# Seconds that streams have to end after the window.
GRACE = 15.0
# How many of the idle connections are being opened at a time.
OPENERS = 16


class Client(asyncio.Protocol):
    """One connection with one request at a time; `ended` hears of every answer, right or wrong."""

    def __init__(self, request: bytes, fault: Callable[[Answer], str | None]) -> None:
        self._request, self._fault = request, fault
        self._transport: asyncio.Transport | None = None
        self._answer: Answer | None = None
        self._asked = 0.0
        self._closes = False
        self.ended: Callable[[str | None], None]
        self.first_event: float | None = None  # seconds after the request
        self.events = 0  # ever
        self.reads = 0  # in which they came

    @property
    def connected(self) -> bool:
        return self._transport is not None and not self._closes

    def ask(self) -> None:
        """Send the request on the open connection."""
        assert self._transport is not None  # noqa: S101 - the caller looked at `connected`
        self._answer = Answer()
        self.first_event = None
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def close(self) -> None:
        self._answer = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:
            return
        came = data.count(b"data: {")
        if came:
            self.events += came
            self.reads += 1
            if self.first_event is None:
                self.first_event = time.perf_counter() - self._asked
        if answer.feed(data):
            self._finish(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._answer is not None:
            # Right only if the answer's framing was the end of the connection.
            self._finish(self._answer)

    def _finish(self, answer: Answer) -> None:
        self._answer = None
        self._closes = answer.closes
        if answer.closes and self._transport is not None:
            self._transport.close()
        self.ended(self._fault(answer))


class Tally:
    """What all clients together have seen."""

    def __init__(self) -> None:
        self.finished = 0
        self.faults: list[str] = []
        self.first_events: list[float] = []

    def add(self, fault: str | None, first_event: float | None) -> None:
        self.finished += 1
        if fault is not None:
            self.faults.append(fault)
        elif first_event is not None:
            self.first_events.append(first_event)


def say(**what: Any) -> None:
    """Tell the process that started us."""
    print(json.dumps(what), flush=True)


# ------------------------------------------------------------------ streams for a while


async def run_streams(options: argparse.Namespace) -> int:
    """Keep `--streams` streams open; each begins anew as soon as it has ended."""
    tally = Tally()
    stop: float = time.perf_counter() + options.warm + options.seconds
    opens = stop - options.seconds  # the window
    request = chat_request(options.events)
    clients: list[Client] = []

    async def keep_streaming(number: int) -> None:
        # Spread over the length of one stream, so that the beginnings stay spread.
        await asyncio.sleep(options.spread * number / options.streams)
        port = options.port[number % len(options.port)]
        client: Client | None = None
        while time.perf_counter() < stop:
            try:
                if client is None or not client.connected:
                    client = await connect(port, request, options.events)
                    clients.append(client)
                fault = await one_answer(client)
            except OSError as error:
                tally.add(f"no connection: {error!r}", None)
                return
            tally.add(fault, client.first_event if time.perf_counter() > opens else None)

    tasks = [asyncio.create_task(keep_streaming(number)) for number in range(options.streams)]
    await asyncio.sleep(options.warm)
    events, reads, started = *_received(clients), time.perf_counter()
    say(at="start")
    await asyncio.sleep(stop - time.perf_counter())
    all_events, all_reads = _received(clients)
    took = time.perf_counter() - started
    say(at="end", events=all_events - events, reads=all_reads - reads, seconds=took)
    ended, late = await asyncio.wait(tasks, timeout=GRACE)
    for task in ended:
        task.result()  # a bug of ours is no result
    tally.faults += [f"a stream had not ended {GRACE:.0f} s after the window"] * len(late)
    say(
        at="done",
        finished=tally.finished,
        first_events=tally.first_events,
        faults=len(tally.faults),
        fault=tally.faults[0] if tally.faults else None,
    )
    return 1 if tally.faults or not tally.finished else 0


def _received(clients: list[Client]) -> tuple[int, int]:
    return sum(client.events for client in clients), sum(client.reads for client in clients)


async def connect(port: int, request: bytes, events: int | None) -> Client:
    """Open one connection; answers will be streams of `events` events, or whole if there is no number."""
    fault = fault_of_completion if events is None else lambda answer: fault_of_stream(answer, events)
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(request, fault), "127.0.0.1", port)
    return client


async def one_answer(client: Client) -> str | None:
    """Ask once; gives what was wrong with the answer."""
    ended: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
    client.ended = lambda fault: None if ended.done() else ended.set_result(fault)
    client.ask()
    return await ended


# ------------------------------------------------------------------ connections that stay


async def hold_streams(options: argparse.Namespace) -> int:
    """Open streams, and hold them until standard input ends; each must be longer than that."""
    request = chat_request(options.events)
    faults: list[str] = []
    clients = []
    for number in range(options.streams):
        client = await connect(options.port[number % len(options.port)], request, options.events)
        client.ended = lambda fault: faults.append(fault or "a stream ended while it was to be held")
        client.ask()
        clients.append(client)
        if number % OPENERS == 0:
            await asyncio.sleep(0.005)
    await until(lambda: bool(faults) or all(client.events for client in clients))
    return await stay_open(clients, faults)


async def idle_connections(options: argparse.Namespace) -> int:
    """Open connections that have had one answer each, and keep them until standard input ends."""
    request = chat_request()
    faults: list[str] = []
    clients: list[Client] = []
    numbers = iter(range(options.connections))

    async def open_some() -> None:
        for number in numbers:
            client = await connect(options.port[number % len(options.port)], request, None)
            fault = await one_answer(client)
            if fault is not None:
                faults.append(fault)
            clients.append(client)

    await asyncio.gather(*(open_some() for _ in range(OPENERS)))
    return await stay_open(clients, faults)


async def stay_open(clients: list[Client], faults: list[str]) -> int:
    """Say that all are open, wait to be told to end, and count those that are not open any more."""
    say(at="open", connections=len(clients), faults=len(faults), fault=faults[0] if faults else None)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    gone = sum(not client.connected for client in clients)
    for client in clients:
        client.close()
    say(at="done", gone=gone, faults=len(faults), fault=faults[0] if faults else None)
    return 1 if faults or gone else 0


async def until(true: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + GRACE
    while not true() and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description="Clients for benchmarks")
    parser.add_argument("mode", choices=["streams", "hold", "idle"])
    parser.add_argument("--port", type=int, action="append", required=True, help="repeatable")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100, help="of one stream")
    parser.add_argument("--spread", type=float, default=1.0, help="seconds over which streams begin")
    parser.add_argument("--warm", type=float, default=1.5, help="seconds before the measured window")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the measured window")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import uvloop  # here, so that the texts can be had without it

    modes = {"streams": run_streams, "hold": hold_streams, "idle": idle_connections}
    code = uvloop.run(modes[options.mode](options))
    sys.stdout.flush()
    # A thread may still wait for standard input.
    os._exit(code)


if __name__ == "__main__":
    main()
