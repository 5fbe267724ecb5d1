"""What a stack holds while it runs: memory, descriptors, files; taken again and again."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.integration.conftest import Stack

_EVERY = 2.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is looked at


@dataclass(frozen=True, slots=True)
class Sight:
    """One look; memory in MB (PSS: shared pages divided by their sharers)."""

    supervisord: float
    proxy: float
    descriptors: int
    processes: int
    shared_memory: int


class Watch:
    """Looks every other second, as long as it is entered."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on)
        self.sights: list[Sight] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        while not self._over.wait(_EVERY):
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
            len(self._stack.processes()),
            len(list(_SHARED_MEMORY.iterdir())),
        )


def memory(process: psutil.Process) -> float:
    return float(process.memory_full_info().pss) / 1e6


def ends(sights: Sequence[Sight], name: str) -> tuple[float, float]:
    """Give the medians of the second and of the last quarter of the looks: the first one is the start."""
    quarter = max(1, len(sights) // 4)
    values = [float(getattr(sight, name)) for sight in sights]
    return statistics.median(values[quarter : 2 * quarter] or values), statistics.median(values[-quarter:])
