"""Clients at a fixed rate: every other one streams, the rest try again as the openai client does."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from types import TracebackType
from typing import Self

from vllm_stack.drill.answer import Ending, StreamReader, judge_answer

HOST = "127.0.0.1"
PATIENCE = 30.0
# As in openai's `_base_client.py`: two more tries, after half a second and after a second.
TRIES, FIRST_PAUSE = 3, 0.5
TOKENS, GAP = 12, 0.03
# Requests that are open at a time at most; beyond that the rate is not kept, and the report says so.
MOST = 256


class Kind(Enum):
    PLAIN = "plain"
    STREAM = "stream"


class Clients:
    """Requests begin at fixed times, whatever became of those before; at the end none is open."""

    def __init__(self, port: int, rate: float) -> None:
        self._port = port
        self._interval = 1 / rate
        self._over = threading.Event()
        self._scheduler = threading.Thread(target=self._schedule)
        self._pool = ThreadPoolExecutor(MOST)
        self._open = 0
        self._counting = threading.Lock()
        # How requests ended, at the first try and after all of them; and those that could not begin in time.
        self.first: Counter[tuple[Kind, Ending]] = Counter()
        self.last: Counter[tuple[Kind, Ending]] = Counter()
        self.details: Counter[str] = Counter()
        # When those began that stayed lost (seconds, monotonic).
        self.lost: dict[Kind, list[float]] = {kind: [] for kind in Kind}
        self.late = 0

    def __enter__(self) -> Self:
        self._scheduler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._scheduler.join()
        self._pool.shutdown()

    def _schedule(self) -> None:
        begun = time.monotonic()
        number = 0
        while not self._over.wait(max(0.0, begun + number * self._interval - time.monotonic())):
            number += 1
            with self._counting:
                full = self._open >= MOST
                self.late += full
                self._open += not full
            if not full:
                self._pool.submit(self._ask, Kind.STREAM if number % 2 else Kind.PLAIN)

    def _ask(self, kind: Kind) -> None:
        begun, pause = time.monotonic(), FIRST_PAUSE
        ending, detail = self._try(kind)
        first = ending
        for _ in range(TRIES - 1):
            # A stream that has begun cannot be begun again unseen; its user does that.
            if ending is not Ending.FAILED:
                break
            time.sleep(pause)
            pause *= 2
            ending, _ = self._try(kind)
        with self._counting:
            self._open -= 1
            self.first[kind, first] += 1
            self.last[kind, ending] += 1
            if ending is Ending.FAILED:
                self.lost[kind].append(begun)
            if first is not Ending.WHOLE:
                self.details[f"{first.value}: {detail}"] += 1

    def _try(self, kind: Kind) -> tuple[Ending, str]:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=PATIENCE)
        reader, body, status, broken = StreamReader(), b"", None, None
        try:
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.request("POST", "/v1/chat/completions", _body(kind), _HEAD)
            response = connection.getresponse()
            status = response.status
            # `read1` raises where a chunked answer ends too early; `read` would not.
            while piece := response.read1(65536):
                if kind is Kind.STREAM and status == 200:
                    reader.feed(piece)
                else:
                    body += piece
        except (OSError, http.client.HTTPException) as error:
            broken = str(error) or type(error).__name__
        finally:
            connection.close()
        if kind is Kind.STREAM and status == 200:
            return reader.ending(broken)
        if broken is not None or status is None:
            return Ending.FAILED, broken or "no answer"
        return judge_answer(status, body)


_HEAD = {"content-type": "application/json", "authorization": "Bearer any"}


def _body(kind: Kind) -> str:
    stream = kind is Kind.STREAM
    script = {"tokens": TOKENS, "delay": GAP}
    words = f"{time.monotonic_ns()} what is new is in no cache"
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": words}], "stream": stream, "fake": script}
    )
