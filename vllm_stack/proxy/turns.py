"""Whose turn it is while all workers are full: first come, first served, over all proxy processes.

Each process publishes since when the first request of its line waits, in memory made before the
fork, with one writer per row as on the scoreboard; where there are several models, requests for one
do not wait for those of another, so each has a lane of its own in every row. A process that frees a
place, and has nobody who waited longer, rings the bell (an eventfd) of the one that has. A file lock
makes looking and taking one step, so the limit of a worker is kept exactly; the kernel ends the lock
of a process that dies.
"""

from __future__ import annotations

import mmap
import os
import time
from contextlib import AbstractContextManager, suppress

from vllm_stack.proxy.process_lock import ProcessLock

_CELL = 8  # bytes, a signed 64-bit integer
# Of a row, behind the lanes.
_WAITING, _CHOOSY, _AWAKE = range(3)
_REST = 3
# Nanoseconds without a sign of life after which nobody waits for a process to take its turn.
_ASLEEP = 2_000_000_000


class Turns:
    """The lines of all processes, by their row, each of which has so many lanes."""

    def __init__(self, rows: int, lanes: int = 1) -> None:
        self.lanes = lanes
        self.width = lanes + _REST
        self._memory = mmap.mmap(-1, rows * self.width * _CELL)
        self.cells = memoryview(self._memory).cast("q")
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(rows)]
        self.lock = ProcessLock("vllm-stack-turns")

    def waiting(self) -> int:
        """Give how many requests wait, in all processes."""
        return sum(self.cells[self.lanes + _WAITING :: self.width])

    def clear(self, row: int) -> None:
        """Forget the line of a process that has ended (master only)."""
        for cell in range(row * self.width, (row + 1) * self.width):
            self.cells[cell] = 0


class Turn:
    """One process's part of it."""

    def __init__(self, turns: Turns, row: int) -> None:
        self._turns = turns
        self._row = row
        self._start = row * turns.width
        self._rest = self._start + turns.lanes
        self.bell = turns.bells[row]

    def alone(self) -> AbstractContextManager[bool]:
        """Hold the lock, and say whether we do.

        A process that stands still does not stop the others: they go on without, and the worst that
        comes of it is a place taken twice.
        """
        return self._turns.lock.holding(0)

    def publish(self, since: int, waiting: int, choosy: bool, lane: int = 0) -> None:
        """Say since when (`time.monotonic_ns`) our first request waits for any place, 0 if none does.

        `waiting` is how many wait in all. `choosy` are those that do not take every place: nobody
        has to wait for them, but they hear of every place that becomes free.
        """
        cells, rest = self._turns.cells, self._rest
        cells[self._start + lane], cells[rest + _WAITING], cells[rest + _CHOOSY] = since, waiting, choosy
        self.show_life()

    def show_life(self) -> None:
        """Say that we can take our turn; whoever waits has to, again and again."""
        self._turns.cells[self._rest + _AWAKE] = time.monotonic_ns()

    def is_ours(self, since: int, lane: int = 0) -> bool:
        """Tell whether no request of another process has waited for longer than since `since`."""
        first = self._first_elsewhere(lane)
        return first is None or since <= first[0]

    def pass_on(self, lane: int = 0) -> None:
        """Call the process whose request has waited longest in this lane, if there is one beside us."""
        first = self._first_elsewhere(lane)
        if first is not None:
            self._ring(first[1])

    def tell(self, lane: int = 0) -> None:
        """Say that a place became free: also to those who may have waited for just this one."""
        self.pass_on(lane)
        choosy = self._turns.cells[self._turns.lanes + _CHOOSY :: self._turns.width].tolist()
        if any(choosy):
            for row, here in enumerate(choosy):
                if here and row != self._row:
                    self._ring(row)

    def hush(self) -> None:
        """Take note of our bell."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def _ring(self, row: int) -> None:
        with suppress(BlockingIOError):  # a bell that was rung 2^64 times is heard all the same
            os.eventfd_write(self._turns.bells[row], 1)

    def _first_elsewhere(self, lane: int) -> tuple[int, int] | None:
        cells, lanes, width = self._turns.cells, self._turns.lanes, self._turns.width
        since = cells[lane::width].tolist()
        firsts = [(at, row) for row, at in enumerate(since) if at and row != self._row]
        if not firsts:  # the usual case
            return None
        asleep = time.monotonic_ns() - _ASLEEP
        return min(
            (first for first in firsts if cells[first[1] * width + lanes + _AWAKE] > asleep), default=None
        )
