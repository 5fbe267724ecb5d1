"""What became of requests, over all processes: by route, method and status, and how long they took.

Memory made before the fork, like the scoreboard: one row a process, which alone writes to it, and readers
sum. It is as large as all combinations there can be, but pages that nobody has touched take no memory.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from http import HTTPStatus
from itertools import compress
from typing import NamedTuple

from vllm_stack.proxy.request_head import METHODS
from vllm_stack.proxy.routes import HEALTH, INFERENCE, LIVENESS, MODELS, REALTIME

_CELL = 8  # bytes, a signed 64-bit integer
# Nobody may fill the memory, or a metrics database, with paths or codes of their own.
OTHER = "other"
ROUTES = (*sorted(path.decode() for path in (*HEALTH, *INFERENCE, LIVENESS, MODELS, REALTIME)), OTHER)
# "" is the method of what was no request.
_METHODS = ("", *sorted(method.decode() for method in METHODS))
# A client that left before it had an answer: nginx's number for it.
CLIENT_LEFT = 499
# Any other counts as 0.
_CODES = tuple(sorted({0, CLIENT_LEFT, 421, 431, *(status.value for status in HTTPStatus)}))
# Upper bounds, in seconds. A first byte takes as long as a prefill and the wait for its turn.
FIRST_BYTE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_MICRO = 1_000_000
_ROUTE_NUMBERS = {route.encode(): number for number, route in enumerate(ROUTES)}
_METHOD_NUMBERS = {method.encode(): number for number, method in enumerate(_METHODS)}
_CODE_NUMBERS = {code: number for number, code in enumerate(_CODES)}
_COMBINATIONS = len(ROUTES) * len(_METHODS) * len(_CODES)
_INDICES = range(_COMBINATIONS)
# Behind the bounds: what is above all of them, and the sum in microseconds.
_FIRST_BYTE_CELLS, _DURATION_CELLS = len(FIRST_BYTE) + 2, len(DURATION) + 2
_SERVER_CELLS = _FIRST_BYTE_CELLS + _DURATION_CELLS + 2
_IN, _OUT = _SERVER_CELLS - 2, _SERVER_CELLS - 1


class Count(NamedTuple):
    """How many requests of one kind came to their end."""

    route: str
    method: str
    code: int
    number: int


class Histogram(NamedTuple):
    """How many took how long: `counts` by upper bound, the last one without a bound; `sum` in seconds."""

    counts: tuple[int, ...]
    sum: float


class ServerTally(NamedTuple):
    """What a server, or the proxy by itself, has answered; sizes in bytes."""

    first_byte: Histogram
    duration: Histogram
    bytes_in: int
    bytes_out: int


class Tally:
    """The rows of all processes; row 0 is the master's."""

    def __init__(self, rows: int, servers: int) -> None:
        self._servers = servers + 1  # the last one stands for the proxy itself
        # The last cell of a row says that there is something in it.
        self.width = _COMBINATIONS + self._servers * _SERVER_CELLS + 1
        self._memory = mmap.mmap(-1, rows * self.width * _CELL)
        self.cells = memoryview(self._memory).cast("q")

    def row(self, row: int) -> TallyRow:
        return TallyRow(self.cells[row * self.width : (row + 1) * self.width], self._servers)

    def give_back(self, row: int) -> None:
        """Add what a process that has ended had counted to the master's row (master only)."""
        start = row * self.width
        for column, value in enumerate(self.cells[start : start + self.width].tolist()):
            if value:
                self.cells[column] += value
                self.cells[start + column] = 0

    def counts(self) -> Iterator[Count]:
        """Give every kind of request there was."""
        numbers: Counter[int] = Counter()
        for row in self._used():
            cells = self.cells[row : row + _COMBINATIONS].tolist()
            for index in compress(_INDICES, cells):  # nearly all of them are 0
                numbers[index] += cells[index]
        for index, number in sorted(numbers.items()):
            kind, code = divmod(index, len(_CODES))
            route, method = divmod(kind, len(_METHODS))
            yield Count(ROUTES[route], _METHODS[method], _CODES[code], number)

    def servers(self) -> list[ServerTally]:
        """Give what each server has answered, and last what the proxy has by itself."""
        sums = self._sums(_COMBINATIONS, self.width - 1)
        return [
            _server(sums[at : at + _SERVER_CELLS])
            for at in range(0, self._servers * _SERVER_CELLS, _SERVER_CELLS)
        ]

    def _used(self) -> Iterator[int]:
        """Give where the rows begin that have something in them."""
        return (row for row in range(0, len(self.cells), self.width) if self.cells[row + self.width - 1])

    def _sums(self, start: int, end: int) -> list[int]:
        rows = [self.cells[row + start : row + end].tolist() for row in self._used()]
        return [sum(column) for column in zip(*rows, strict=True)] if rows else [0] * (end - start)


class TallyRow:
    """The cells of one process."""

    __slots__ = ("_cells", "_nobody")

    def __init__(self, cells: memoryview, servers: int) -> None:
        self._cells = cells
        self._nobody = servers - 1

    def count(
        self,
        path: bytes,
        method: bytes,
        code: int,
        server: int | None,
        first_byte: float | None,
        duration: float,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """Count a request that has ended; times in seconds, `server` None for an answer of our own."""
        cells = self._cells
        kind = _ROUTE_NUMBERS.get(path, len(ROUTES) - 1) * len(_METHODS) + _METHOD_NUMBERS[method]
        cells[kind * len(_CODES) + _CODE_NUMBERS.get(code, 0)] += 1
        cells[-1] = 1
        start = _COMBINATIONS + (self._nobody if server is None else server) * _SERVER_CELLS
        if first_byte is not None:
            cells[start + bisect_left(FIRST_BYTE, first_byte)] += 1
            cells[start + _FIRST_BYTE_CELLS - 1] += int(first_byte * _MICRO)
        behind = start + _FIRST_BYTE_CELLS
        cells[behind + bisect_left(DURATION, duration)] += 1
        cells[behind + _DURATION_CELLS - 1] += int(duration * _MICRO)
        cells[start + _IN] += bytes_in
        cells[start + _OUT] += bytes_out


def _server(sums: list[int]) -> ServerTally:
    first, duration = sums[:_FIRST_BYTE_CELLS], sums[_FIRST_BYTE_CELLS:_IN]
    return ServerTally(_histogram(first), _histogram(duration), sums[_IN], sums[_OUT])


def _histogram(cells: list[int]) -> Histogram:
    return Histogram(tuple(cells[:-1]), cells[-1] / _MICRO)
