"""Counters that all proxy processes share: one row per process, one writer per row, readers sum.

The board is anonymous memory made in gunicorn's master before it forks, so every process has it
without a lock or a file. When a process dies, the master clears what it held in flight and adds
its totals to its own row: a killed process can neither leak load nor take its history along.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from vllm_stack.proxy.homes import Homes
from vllm_stack.proxy.turns import Turn, Turns

# `retries_*` by what became of the try before: `connect` nobody listened, `stale` a kept connection
# had died, `broken` the connection broke before the answer began, `abort` the worker aborted what
# nobody had asked it to, `elsewhere` another one may know better. `aborts` are all such aborts, also
# those that could not be retried; `waited` are requests that found no worker free.
TOTALS = (
    "requests",
    "refused",
    "waited",
    "retries_connect",
    "retries_stale",
    "retries_broken",
    "retries_abort",
    "retries_elsewhere",
    "aborts",
    "failures",
    "client_gone",
)
REQUESTS, REFUSED, WAITED = range(3)
RETRIES_CONNECT, RETRIES_STALE, RETRIES_BROKEN, RETRIES_ABORT, RETRIES_ELSEWHERE = range(3, 8)
ABORTS, FAILURES, CLIENT_GONE = range(8, len(TOTALS))
_CELL = 8  # bytes, a signed 64-bit integer


class Row:
    """The cells of one process, which alone may write to them."""

    def __init__(self, cells: memoryview, workers: int, turn: Turn) -> None:
        # What this process has in flight, by worker.
        self.leases = cells[:workers]
        # What it has counted, by place in `TOTALS`.
        self.totals = cells[workers:]
        self.turn = turn

    def count(self, total: int) -> None:
        self.totals[total] += 1


class Scoreboard:
    """Rows for `processes` gunicorn workers at a time; row 0 is the master's.

    `lanes` are how many lines each of them has (`turns`).
    """

    def __init__(self, processes: int, workers: int, lanes: int = 1) -> None:
        # A reload runs old and new processes side by side, and a dying one may still hold its row.
        self._rows = 2 * processes + 5
        self._workers = workers
        self._width = workers + len(TOTALS)
        size = self._rows * self._width
        self._memory = mmap.mmap(-1, (size + 1) * _CELL)
        cells = memoryview(self._memory).cast("q")
        self._cells = cells[:size]
        # The highest row ever taken, for all processes to know: readers need not look further.
        self._highest = cells[size:]
        self._first = cells[self._width : self._width + workers]
        self._taken: set[int] = set()
        self.homes = Homes()
        self.turns = Turns(self._rows, lanes)

    def take_row(self) -> int:
        """Reserve a row for a process about to be forked (master only)."""
        row = next(row for row in range(1, self._rows) if row not in self._taken)
        self._taken.add(row)
        self._highest[0] = max(self._highest[0], row)
        return row

    def give_back(self, row: int) -> None:
        """Clear the row of a process that has ended, keeping its totals (master only)."""
        start = row * self._width
        for column in range(self._width):
            if column >= self._workers:
                self._cells[column] += self._cells[start + column]
            self._cells[start + column] = 0
        self.turns.clear(row)
        self._taken.discard(row)

    def row(self, row: int) -> Row:
        start = row * self._width
        return Row(self._cells[start : start + self._width], self._workers, Turn(self.turns, row))

    def loads(self) -> Sequence[int]:
        """Give the requests in flight per worker, over all processes."""
        highest = self._highest[0]
        if highest == 1:  # one process, and no reload yet: the usual case
            return self._first.tolist()
        workers, width = self._workers, self._width
        rows = range(width, (highest + 1) * width, width)
        return [sum(column) for column in zip(*(self._cells[r : r + workers] for r in rows), strict=True)]

    def totals(self) -> dict[str, int]:
        """Give the totals since the master started, over all processes."""
        return {
            name: sum(self._cells[self._workers + column :: self._width])
            for column, name in enumerate(TOTALS)
        }
