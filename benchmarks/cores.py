"""Which cores the proxy gets, and which the load: they must not take time from each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """Cores of the proxy under test, cores of the backends and clients, and that in words."""

    proxy: tuple[int, ...]
    load: tuple[int, ...]
    words: str


def own_cores() -> tuple[int, ...]:
    return tuple(sorted(os.sched_getaffinity(0)))


def split(cores: Sequence[int], processes: int = 1) -> Split:
    """Give `processes` cores to the proxy and the others to the load, where there are enough."""
    every = tuple(cores)
    if processes == 1 and len(every) >= 2:
        words = f"the proxy alone on core {every[0]}, backends and clients on core {_listed(every[1:])}"
        return Split(every[:1], every[1:], words)
    if len(every) >= 2 * processes:
        proxy, load = every[:processes], every[processes:]
        words = f"the proxy on cores {_listed(proxy)}, backends and clients on cores {_listed(load)}"
        return Split(proxy, load, words)
    return Split(every, every, f"proxy, backends and clients share core {_listed(every)}")


def _listed(cores: Sequence[int]) -> str:
    return ", ".join(map(str, cores))
