"""Counters that all proxy processes share: one row per process, one writer per row, readers sum.

The board is anonymous memory made in gunicorn's master before it forks, so every process has it
without a lock or a file. When a process dies, the master clears what it held in flight and adds
its totals to its own row: a killed process can neither leak load nor take its history along.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from vllm_stack.proxy.homes import Homes
from vllm_stack.proxy.tally import Tally, TallyRow
from vllm_stack.proxy.turns import Turn, Turns

# `retries_*` by what became of the try before: `connect` nobody listened, `stale` a kept connection
# had died, `broken` the connection broke before the answer began, `abort` the worker aborted what
# nobody had asked it to, `elsewhere` another one may know better. `aborts` are all such aborts, also
# those that could not be retried; `waited` are requests that found no worker free,
# `unlogged` those whose line in the access log could not be written.
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
    "unlogged",
)
REQUESTS, REFUSED, WAITED = range(3)
RETRIES_CONNECT, RETRIES_STALE, RETRIES_BROKEN, RETRIES_ABORT, RETRIES_ELSEWHERE = range(3, 8)
ABORTS, FAILURES, CLIENT_GONE, UNLOGGED = range(8, len(TOTALS))
_CELL = 8  # bytes, a signed 64-bit integer
# What the master alone writes: the highest row ever taken (readers need not look further), that all is to
# end, that the processes which retire hold rows that others need, and how often it was told to reload.
_HIGHEST, _ENDING, _CROWDED, _RELOADS = range(4)
_MASTERS = 4


class Row:
    """The cells of one process, which alone may write to them."""

    def __init__(self, cells: memoryview, workers: int, turn: Turn, tally: TallyRow) -> None:
        # What this process has in flight, by worker.
        self.leases = cells[:workers]
        # Whether it sends requests to a worker.
        self.open = cells[workers : 2 * workers]
        self._serves = cells[2 * workers : 2 * workers + 1]
        # What it has counted, by place in `TOTALS`.
        self.totals = cells[2 * workers + 1 :]
        self.turn = turn
        self.tally = tally

    def count(self, total: int) -> None:
        self.totals[total] += 1

    def serve(self) -> None:
        """Tell the master that this process takes connections from now on."""
        self._serves[0] = 1


class Scoreboard:
    """Rows for `processes` gunicorn workers at a time; row 0 is the master's.

    `lanes` are how many lines each of them has (`turns`).
    """

    def __init__(self, processes: int, workers: int, lanes: int = 1) -> None:
        # Reloads run old and new processes side by side, and a dying one may still hold its row.
        self._rows = 4 * processes + 5
        self._workers = workers
        # Of what a row is now; the rest are totals.
        self._now = 2 * workers + 1
        self._width = self._now + len(TOTALS)
        size = self._rows * self._width
        self._memory = mmap.mmap(-1, (size + _MASTERS) * _CELL)
        cells = memoryview(self._memory).cast("q")
        self._cells = cells[:size]
        # What the master tells all processes.
        self._told = cells[size:]
        self._first = cells[self._width : self._width + workers]
        self._taken: set[int] = set()
        self.homes = Homes()
        self.turns = Turns(self._rows, lanes)
        self.tally = Tally(self._rows, workers)

    @property
    def rows(self) -> int:
        """How many rows there are, the master's included."""
        return self._rows

    def take_row(self) -> int | None:
        """Reserve a row for a process about to be forked (master only); None while all are taken."""
        row = next((row for row in range(1, self._rows) if row not in self._taken), None)
        self._told[_CROWDED] = row is None
        if row is not None:
            self._taken.add(row)
            self._told[_HIGHEST] = max(self._told[_HIGHEST], row)
        return row

    def make_room(self, processes: int) -> bool:
        """Tell whether so many more find a row (master only); if not, those that retire must go now."""
        room = len(self._taken) + processes < self._rows
        self._told[_CROWDED] = not room
        return room

    def serves(self, row: int | None) -> bool:
        """Tell whether the process of this row takes connections."""
        return row is not None and bool(self._cells[row * self._width + self._now - 1])

    @property
    def ending(self) -> bool:
        """The proxy shuts down; otherwise a process that is told to end retires."""
        return bool(self._told[_ENDING])

    @ending.setter
    def ending(self, ending: bool) -> None:
        self._told[_ENDING] = ending

    @property
    def reloads(self) -> int:
        """How often the master was told to reload; a process of before that knows, too."""
        return self._told[_RELOADS]

    @reloads.setter
    def reloads(self, count: int) -> None:
        self._told[_RELOADS] = count

    @property
    def crowded(self) -> bool:
        """A new process found no row: those that retire must make room."""
        return bool(self._told[_CROWDED])

    def give_back(self, row: int) -> None:
        """Clear the row of a process that has ended, keeping its totals (master only)."""
        start = row * self._width
        for column in range(self._width):
            if column >= self._now:
                self._cells[column] += self._cells[start + column]
            self._cells[start + column] = 0
        self.turns.clear(row)
        self.tally.give_back(row)
        self._taken.discard(row)

    def row(self, row: int) -> Row:
        start = row * self._width
        cells = self._cells[start : start + self._width]
        return Row(cells, self._workers, Turn(self.turns, row), self.tally.row(row))

    def loads(self) -> Sequence[int]:
        """Give the requests in flight per worker, over all processes."""
        highest = self._told[_HIGHEST]
        if highest == 1:  # one process, and no reload yet: the usual case
            return self._first.tolist()
        workers, width = self._workers, self._width
        rows = range(width, (highest + 1) * width, width)
        return [sum(column) for column in zip(*(self._cells[r : r + workers] for r in rows), strict=True)]

    def open_in(self) -> list[int]:
        """Give in how many processes requests go to each worker: 0 for one that gets nothing new."""
        return [sum(self._cells[self._workers + worker :: self._width]) for worker in range(self._workers)]

    def totals(self) -> dict[str, int]:
        """Give the totals since the master started, over all processes."""
        return {
            name: sum(self._cells[self._now + column :: self._width]) for column, name in enumerate(TOTALS)
        }
