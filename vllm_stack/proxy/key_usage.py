"""What every named key has used, over all processes of the proxy: counted in memory they share.

The memory is made before the fork, like the scoreboard. What is counted has one writer: each process
has a row, with a few cells for every key, and readers sum. The window of the last minute is written to by all
of them, under the lock of its key. Pages that nobody has touched take no memory.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vllm_stack.keys.named import MOST_NAMED
from vllm_stack.proxy.process_lock import ProcessLock

_CELL = 8  # bytes, a signed 64-bit integer
# Places for the keys that were given to `render`, behind those of the file. A reload may bring others, so
# there are as many in any case; should they be more, the last ones are counted together.
_RENDERED = 1024
# Of a key in a row.
REQUESTS, LIMITED, IN_FLIGHT = range(3)
_CELLS = 3
# Generations in the head of a row: nobody is there, somebody who has not read the file yet, somebody without
# a file.
ABSENT, COMING, NO_FILE = 0, -1, -2
# A window is a count for each second of a minute, one more for the second that is not over yet, and behind
# them which second that is. So there are never more within any 60 seconds, and a place is free after 61.
_SECONDS = 61
_NOW = _SECONDS
_WINDOW = _SECONDS + 1


# Seconds after which it is worth a try whether one of the requests in flight has ended.
_SOON = 1


def rendered_slot(number: int) -> int:
    """Give where the requests of a key are counted that was given to `render`, the first being 0."""
    return MOST_NAMED + min(number, _RENDERED - 1)


class Denial(NamedTuple):
    """A limit that has no room: of the requests at a time, or by the minute. `wait` is in seconds."""

    concurrent: bool
    wait: int


class KeyUsage:
    """Rows for the processes, and windows for the keys that have a limit by the minute."""

    def __init__(self, rows: int) -> None:
        self.width = (MOST_NAMED + _RENDERED) * _CELLS
        size = rows * self.width
        self._memory = mmap.mmap(-1, (size + rows + MOST_NAMED * _WINDOW + 1) * _CELL)
        cells = memoryview(self._memory).cast("q")
        self.cells = cells[:size]
        # Which version of the file each process goes by.
        self.generations = cells[size : size + rows]
        self.windows = cells[size + rows : -1]
        # Whether any of them has asked for keys: then none may open the door again.
        self.closed = cells[-1:]
        self.lock = ProcessLock("vllm-stack-keys")

    def expect(self, row: int) -> None:
        """Note that a process is about to be forked, which will read the file (master only)."""
        self.generations[row] = COMING

    def clear(self, row: int) -> None:
        """Clear the row of a process that has ended, keeping its totals in row 0 (master only)."""
        self.generations[row] = ABSENT
        start = row * self.width
        for cell, value in enumerate(self.cells[start : start + self.width].tolist()):
            if value:
                if cell % _CELLS != IN_FLIGHT:
                    self.cells[cell] += value
                self.cells[start + cell] = 0

    def row(self, row: int) -> KeyRow:
        return KeyRow(self, row)

    def total(self, slot: int, what: int) -> int:
        """Give what was counted for a key since the master started, or is in flight now."""
        return sum(self.cells[slot * _CELLS + what :: self.width].tolist())

    def totals(self, slot: int) -> dict[str, int]:
        """Give all that is counted for a key."""
        return {
            "requests": self.total(slot, REQUESTS),
            "limited": self.total(slot, LIMITED),
            "in_flight": self.total(slot, IN_FLIGHT),
        }

    def seen(self) -> Sequence[int]:
        """Give the generation that each process goes by."""
        return [generation for generation in self.generations.tolist() if generation != ABSENT]


class KeyRow:
    """The cells of one process, which alone may write to them, and its way to the windows."""

    def __init__(self, usage: KeyUsage, row: int) -> None:
        self.usage = usage
        self._row = row
        self.cells = usage.cells[row * usage.width : (row + 1) * usage.width]

    @property
    def closed(self) -> bool:
        """Keys are asked for, whatever has become of their file; once true, it stays so."""
        return bool(self.usage.closed[0])

    @closed.setter
    def closed(self, closed: bool) -> None:
        self.usage.closed[0] = closed

    def place(self, slot: int) -> int:
        """Give where the cells of a key begin."""
        return slot * _CELLS

    def publish(self, generation: int) -> None:
        """Say which version of the file this process goes by from now on."""
        self.usage.generations[self._row] = generation

    def allow(
        self,
        slot: int,
        concurrent: int | None,
        per_minute: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> Denial | None:
        """Take a request in flight if both limits have room for it; None is no limit.

        What is refused counts for neither. Gives why it is, None if it is not.
        """
        usage, cell = self.usage, slot * _CELLS + IN_FLIGHT
        with usage.lock.holding(slot):
            # First taken, then counted: so there are never too many, also without the lock.
            self.cells[cell] += 1
            denial = None
            if concurrent is not None and usage.total(slot, IN_FLIGHT) > concurrent:
                denial = Denial(True, _SOON)
            elif per_minute is not None and (wait := self._count(slot, per_minute, int(clock()))):
                denial = Denial(False, wait)
            if denial is not None:
                self.cells[cell] -= 1
        return denial

    def _count(self, slot: int, most: int, now: int) -> int:
        """Count a request in the window of a key; if there is no room, give the seconds until there is.

        The window is true whenever the process may be killed: what it forgets here is older than a minute.
        """
        start = slot * _WINDOW
        window = self.usage.windows[start : start + _WINDOW]
        last = window[_NOW]
        now = max(now, last)
        for second in range(max(last, now - _SECONDS) + 1, now + 1):
            window[second % _SECONDS] = 0
        window[_NOW] = now
        over = sum(window[:_SECONDS].tolist()) - most
        if over < 0:
            window[now % _SECONDS] += 1
            return 0
        return next(
            (
                _SECONDS - age
                for age in range(_SECONDS - 1, -1, -1)  # the oldest leave first
                if (over := over - window[(now - age) % _SECONDS]) < 0
            ),
            _SECONDS,
        )
