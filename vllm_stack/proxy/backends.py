"""The workers as the proxy sees them: where they are, whether they are ready, how loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection

from gevent.event import Event

from vllm_stack.proxy.policy import Choice, make_choice
from vllm_stack.proxy.scoreboard import Row, Scoreboard
from vllm_stack.proxy.settings import ProxySettings, WorkerAddress
from vllm_stack.proxy.upstream import Pool

_log = logging.getLogger("gunicorn.error")


class Backend:
    """One worker: its connections, and whether requests go to it."""

    def __init__(self, index: int, address: WorkerAddress, max_idle: float) -> None:
        self.index = index
        self.name = address.name
        self.address = (address.host, address.port)
        self.pool = Pool(self.address, max_idle)
        self.ready = False
        self.state = "unknown"
        self._notice = address.stopping
        # Set to have the worker probed now instead of at the next tick.
        self.look = Event()

    def is_stopping(self) -> bool:
        """The worker was told to stop: it still answers, but only to end what it has begun."""
        return self._notice.exists()

    def mark(self, ready: bool, state: str) -> None:
        """Note what was seen of the worker, and say so when it changed."""
        if state != self.state:
            _log.info("%s: %s -> %s", self.name, self.state, state)
        self.ready, self.state = ready, state

    def suspect(self, state: str) -> None:
        """Take the worker out of the choice until a probe finds it well."""
        self.mark(False, state)
        self.look.set()


class Backends:
    """All workers, and the choice among those that are ready."""

    def __init__(self, settings: ProxySettings, board: Scoreboard, row: Row) -> None:
        self.all = tuple(
            Backend(index, address, settings.pool_idle) for index, address in enumerate(settings.workers)
        )
        self._board = board
        self._row = row
        self._choice: Choice = make_choice(settings.policy)

    def choose(self, tried: Collection[int]) -> Backend | None:
        """Choose a ready worker that was not tried yet, None if there is none."""
        candidates = [b.index for b in self.all if b.ready and b.index not in tried]
        if not candidates:
            return None
        loads = self._board.loads() if len(candidates) > 1 else ()
        return self.all[self._choice(candidates, loads) if loads else candidates[0]]

    def any_ready(self) -> bool:
        return any(backend.ready for backend in self.all)

    def lease(self, backend: Backend) -> None:
        self._row.lease(backend.index)

    def release(self, backend: Backend) -> None:
        self._row.release(backend.index)
