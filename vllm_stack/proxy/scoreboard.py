"""Counters that all proxy processes share: one row per process, one writer per row, readers sum.

The board is anonymous memory made in gunicorn's master before it forks, so every process has it
without a lock or a file. When a process dies, the master clears what it held in flight and adds
its totals to its own row: a killed process can neither leak load nor take its history along.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from vllm_stack.proxy.homes import Homes

TOTALS = ("requests", "refused", "retries", "failures", "client_gone")
REQUESTS, REFUSED, RETRIES, FAILURES, CLIENT_GONE = range(len(TOTALS))
_CELL = 8  # bytes, a signed 64-bit integer


class Row:
    """The cells of one process, which alone may write to them."""

    def __init__(self, cells: memoryview, workers: int) -> None:
        self._cells = cells
        self._workers = workers

    def lease(self, worker: int) -> None:
        self._cells[worker] += 1

    def release(self, worker: int) -> None:
        self._cells[worker] -= 1

    def count(self, total: int) -> None:
        """Add one to a total, by its place in `TOTALS`."""
        self._cells[self._workers + total] += 1


class Scoreboard:
    """Rows for `processes` gunicorn workers at a time; row 0 is the master's."""

    def __init__(self, processes: int, workers: int) -> None:
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
        self._taken: set[int] = set()
        self.homes = Homes()

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
        self._taken.discard(row)

    def row(self, row: int) -> Row:
        start = row * self._width
        return Row(self._cells[start : start + self._width], self._workers)

    def loads(self) -> Sequence[int]:
        """Give the requests in flight per worker, over all processes."""
        workers, width = self._workers, self._width
        rows = range(width, (self._highest[0] + 1) * width, width)
        if len(rows) == 1:  # one process, and no reload yet: the usual case
            return self._cells[width : width + workers].tolist()
        return [sum(column) for column in zip(*(self._cells[r : r + workers] for r in rows), strict=True)]

    def totals(self) -> dict[str, int]:
        """Give the totals since the master started, over all processes."""
        return {
            name: sum(self._cells[self._workers + column :: self._width])
            for column, name in enumerate(TOTALS)
        }
