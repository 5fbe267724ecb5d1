"""The workers' own metrics, as they print them: asked for side by side, and shared by whoever looks.

The pages of the admin door that show them (the metrics, the dashboard's state) go through one
`WorkerMetrics` a process, so that many who look at once cost the workers one question a second.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gevent
import gevent.socket

from vllm_stack.local_http import LocalConnection
from vllm_stack.proxy.backends import Backend

# Seconds that a question may take. One that hangs is not asked again before that.
PATIENCE = 2.0
# Seconds for which an answer is good for everybody.
FRESH = 1.0
# Bytes. vLLM prints some 150 kB for each engine; all that they are read, no stream goes on.
_MOST = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Scrape:
    """What a worker printed, and when (seconds, monotonic)."""

    at: float
    text: bytes


class WorkerMetrics:
    """Asks the workers of this stack; servers elsewhere are not asked."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._workers = [backend for backend in backends if not backend.remote]
        self._last: dict[int, Scrape] = {}
        self._asked: dict[int, float] = {}
        self._asking: dict[int, gevent.Greenlet[..., None]] = {}

    def look(self, patience: float = PATIENCE) -> dict[int, Scrape]:
        """Give what the workers print, by their index, waiting `patience` seconds at most.

        A worker that does not answer in time is not in it, unless what it said before is hardly older than
        a question may take.
        """
        for worker in self._workers:
            self._ask(worker)
        gevent.joinall(list(self._asking.values()), timeout=patience)
        oldest = time.monotonic() - FRESH - PATIENCE
        return {index: scrape for index, scrape in self._last.items() if scrape.at >= oldest}

    def _ask(self, worker: Backend) -> None:
        """Ask in a greenlet of its own, unless that is under way, or was done just now."""
        now = time.monotonic()
        if worker.index in self._asking or now - self._asked.get(worker.index, -FRESH) < FRESH:
            return
        self._asked[worker.index] = now
        self._asking[worker.index] = gevent.spawn(self._fetch, worker)

    def _fetch(self, worker: Backend) -> None:
        try:
            with gevent.Timeout(PATIENCE, TimeoutError("The worker's metrics did not come in time")):
                text = _get_metrics(worker)
            self._last[worker.index] = Scrape(time.monotonic(), text)
        except TimeoutError:
            pass  # it hangs, or is busy: what it said before may do
        except (OSError, http.client.HTTPException, ValueError):  # http.client takes a chunk of -5 bytes
            self._last.pop(worker.index, None)
        finally:
            del self._asking[worker.index]


def _get_metrics(worker: Backend) -> bytes:
    """Get them over a connection of their own; raises `OSError`, `HTTPException` or `ValueError`."""
    connection = _Connection(worker.address, PATIENCE)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read(_MOST)
        if answer.status != http.client.OK:
            raise http.client.HTTPException(f"the worker answers {answer.status}")
        if answer.length:  # of what was promised, so much did not come
            raise http.client.IncompleteRead(text, answer.length)
        return text
    finally:
        connection.close()


class _Socket(gevent.socket.socket):
    """Lets others have their turn before every read: gevent does not while there is more to be had."""

    def recv_into(self, *args: Any) -> int:
        gevent.sleep(0)
        return super().recv_into(*args)


class _Connection(LocalConnection):
    def connect(self) -> None:
        self.sock = _Socket(self._address.family, gevent.socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address.sockaddr)
