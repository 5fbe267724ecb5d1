"""Clients that ask the door again and again while a drill runs, and note how every request ended."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from vllm_stack.drill.answer import Ending, Outcome, StreamReader, judge_answer
from vllm_stack.drill.door import Door, Requests

_PIECE = 65536
_PAUSE = 0.02  # seconds between two requests of a client
_PAUSE_AFTER_LOSS = 0.25
_JOIN = 5.0  # seconds for a client to notice that its connection was shut
_PROMPT = "{} Count from one to one thousand in words, slowly, one number a line."


class Traffic:
    """Some clients, every other of them streams. As a context manager it never leaves a thread behind.

    A request may be silent for `patience` seconds, then it counts as failed.
    """

    def __init__(self, door: Door, requests: Requests, clients: int, patience: float) -> None:
        self._over = threading.Event()
        self._clients = [
            _Client(door, requests, number, number % 2 == 0, patience, self._over)
            for number in range(clients)
        ]

    def outcomes(self) -> list[Outcome]:
        """Give the requests that have ended so far."""
        return [outcome for client in self._clients for outcome in tuple(client.outcomes)]

    def has_flowed(self) -> bool:
        """Tell whether every client has got a whole answer."""
        return all(any(o.ending is Ending.WHOLE for o in tuple(c.outcomes)) for c in self._clients)

    def open_streams(self) -> int:
        """Count the streams of which something has come, and not yet the end."""
        return sum(client.streams_now for client in self._clients)

    def settle(self, seconds: float) -> None:
        """Begin no further request, and let those that are open end by themselves for so long."""
        self._over.set()
        deadline = time.monotonic() + seconds
        for client in self._clients:
            client.thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        for client in self._clients:
            client.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        deadline = time.monotonic() + _JOIN
        # Again and again: a client may be about to open its connection when the others are shut.
        while living := [client for client in self._clients if client.thread.is_alive()]:
            for client in living:
                client.hang_up()
            living[0].thread.join(0.1)
            if time.monotonic() > deadline:
                return  # they are daemons, and end with us


@dataclass(eq=False)
class _Client:
    door: Door
    requests: Requests
    number: int
    streams: bool
    patience: float
    over: threading.Event
    outcomes: list[Outcome] = field(default_factory=list)
    streams_now: bool = False
    _stopped: bool = False
    _socket: socket.socket | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._ask_on, name=f"drill-{self.number}", daemon=True)

    def hang_up(self) -> None:
        """Have the request that is open end at once, as unfinished; from another thread."""
        self._stopped = True
        if (sock := self._socket) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _ask_on(self) -> None:
        for turn in itertools.count():
            if self.over.is_set():
                return
            outcome = self._ask(_PROMPT.format(f"{self.number}-{turn}-{time.monotonic_ns()}."))
            self.outcomes.append(outcome)
            self.over.wait(_PAUSE_AFTER_LOSS if outcome.is_lost else _PAUSE)

    def _ask(self, prompt: str) -> Outcome:
        exchange = _Exchange()
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self.door.connect(self.patience, self._opened)
            exchange.port = connection.sock.getsockname()[1]
            body = self.requests.body(prompt, self.streams)
            connection.request("POST", self.requests.path, body, self.door.headers)
            response = connection.getresponse()
            exchange.status = response.status
            self._read(response, exchange)
        except (OSError, http.client.HTTPException) as error:
            exchange.broken = _describe(error)
        finally:
            self.streams_now = False
            self._socket = None
            if connection is not None:
                connection.close()
        return exchange.outcome(self.streams, self._stopped)

    def _opened(self, sock: socket.socket) -> None:
        self._socket = sock

    def _read(self, response: http.client.HTTPResponse, exchange: _Exchange) -> None:
        # Not `readline` or `read`: in a chunked answer they take a connection that ends too early for a
        # proper end; `read1` raises IncompleteRead.
        while piece := response.read1(_PIECE):
            exchange.take(piece, self.streams)
            self.streams_now = self.streams


@dataclass(slots=True)
class _Exchange:
    begun: float = field(default_factory=time.monotonic)
    settled: float | None = None
    status: int | None = None
    broken: str | None = None
    port: int | None = None
    body: bytearray = field(default_factory=bytearray)
    events: StreamReader = field(default_factory=StreamReader)

    def take(self, piece: bytes, streamed: bool) -> None:
        self.settled = self.settled or time.monotonic()
        if streamed and self.status == 200:
            self.events.feed(piece)
        else:
            self.body += piece

    def outcome(self, streamed: bool, stopped: bool) -> Outcome:
        ending, detail = self._ending(streamed)
        if stopped and ending not in (Ending.WHOLE, Ending.CUT):
            ending, detail = Ending.UNFINISHED, ""
        ended = time.monotonic()
        return Outcome(self.begun, self.settled, ended, streamed, ending, self.status, detail, self.port)

    def _ending(self, streamed: bool) -> tuple[Ending, str]:
        if streamed and self.status == 200:
            return self.events.ending(self.broken)
        if self.broken is not None or self.status is None:
            return Ending.FAILED, self.broken or "no answer"
        return judge_answer(self.status, bytes(self.body))


def _describe(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came for too long"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection ended in the middle of the answer"
    return str(error) or type(error).__name__
