"""What a stack holds while it runs: memory and descriptors, taken again and again."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from tests.integration.conftest import Stack
from tests.soak.repeated import Repeated

_EVERY = 2.0


@dataclass(frozen=True, slots=True)
class Sight:
    """One look; memory in MB (PSS: shared pages divided by their sharers)."""

    supervisord: float
    proxy: float
    descriptors: int


class Watch(Repeated):
    """Looks every other second, as long as it is entered."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(_EVERY)
        self._stack = stack
        self.sights: list[Sight] = []

    def turn(self) -> None:
        # A process that ends meanwhile, or a supervisord that is busy: then at the next look.
        with contextlib.suppress(Exception):
            self.sights.append(self._look())

    def _look(self) -> Sight:
        supervisord = self._stack.supervisord
        assert supervisord is not None
        master = psutil.Process(self._stack.pid("proxy"))
        proxy = [master, *master.children()]
        return Sight(
            memory(psutil.Process(supervisord.pid)),
            sum(map(memory, proxy)),
            sum(process.num_fds() for process in proxy),
        )


def memory(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 1e6


def ends(sights: Sequence[Sight], name: str) -> tuple[float, float]:
    """Give the medians of the second and of the last quarter of the looks: the first one is the start."""
    quarter = max(1, len(sights) // 4)
    values = [float(getattr(sight, name)) for sight in sights]
    return statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])
