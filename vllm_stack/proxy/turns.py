"""Whose turn it is while all workers are full: first come, first served, over all proxy processes.

Each process publishes since when the first request of its line waits, in memory made before the
fork, with one writer per row as on the scoreboard. A process that frees a place, and has nobody who
waited longer, rings the bell (an eventfd) of the one that has. A file lock makes looking and taking
one step, so the limit of a worker is kept exactly; the kernel ends the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from contextlib import suppress
from typing import Self

_CELL = 8  # bytes, a signed 64-bit integer
_SINCE, _WAITING = 0, 1
_WIDTH = 2
# Seconds. A process that was stopped with the lock in its hand must not stop the others: they go on
# without, and the worst that comes of it is a place taken twice.
_PATIENCE = 0.005


class Turns:
    """The lines of all processes, by their row."""

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * _WIDTH * _CELL)
        self.cells = memoryview(self._memory).cast("q")
        self.bells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(rows)]
        self.lock = os.memfd_create("vllm-stack-turns", os.MFD_CLOEXEC)

    def waiting(self) -> int:
        """Give how many requests wait, in all processes."""
        return sum(self.cells[_WAITING::_WIDTH])

    def clear(self, row: int) -> None:
        """Forget the line of a process that has ended (master only)."""
        for cell in range(row * _WIDTH, (row + 1) * _WIDTH):
            self.cells[cell] = 0


class Turn:
    """One process's part of it; as a context manager, the lock."""

    def __init__(self, turns: Turns, row: int) -> None:
        self._turns = turns
        self._row = row
        self._locked = False
        self.bell = turns.bells[row]

    def publish(self, since: int, waiting: int) -> None:
        """Say since when (`time.monotonic_ns`) our first request waits for a place, 0 if none does.

        `waiting` is how many wait in all, also those for whom it is not a matter of turns.
        """
        cells, cell = self._turns.cells, self._row * _WIDTH
        cells[cell + _SINCE], cells[cell + _WAITING] = since, waiting

    def is_ours(self, since: int) -> bool:
        """Tell whether no request of another process has waited for longer than since `since`."""
        first = self._first_elsewhere()
        return first is None or since <= first[0]

    def pass_on(self) -> None:
        """Call the process whose request has waited longest, if there is one beside us."""
        first = self._first_elsewhere()
        if first is not None:
            with suppress(BlockingIOError):  # a bell that was rung 2^64 times is heard all the same
                os.eventfd_write(self._turns.bells[first[1]], 1)

    def hush(self) -> None:
        """Take note of our bell."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def _first_elsewhere(self) -> tuple[int, int] | None:
        since = self._turns.cells[_SINCE::_WIDTH].tolist()
        return min(((at, row) for row, at in enumerate(since) if at and row != self._row), default=None)

    def __enter__(self) -> Self:
        end = time.monotonic() + _PATIENCE
        while not self._locked:
            try:
                fcntl.lockf(self._turns.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._locked = True
            except OSError:
                if time.monotonic() > end:
                    break
        return self

    def __exit__(self, *error: object) -> None:
        if self._locked:
            self._locked = False
            fcntl.lockf(self._turns.lock, fcntl.LOCK_UN)
