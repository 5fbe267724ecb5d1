"""How a worker is chosen: pure functions over the candidates and their loads."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

# Candidates are indices of workers; loads are requests in flight, by index, over all processes.
Choice = Callable[[Sequence[int], Sequence[int]], int]


def make_choice(policy: str, rng: random.Random | None = None) -> Choice:
    """Give the choice function of a policy; raises `ValueError` for a name that is none."""
    source = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
    if policy == "least-loaded":
        return lambda candidates, loads: least_loaded(candidates, loads, source)
    if policy == "round-robin":
        return RoundRobin()
    if policy == "random":
        return lambda candidates, loads: source.choice(candidates)
    raise ValueError(f"{policy!r} is not a policy")


def least_loaded(candidates: Sequence[int], loads: Sequence[int], rng: random.Random) -> int:
    """Choose the worker with the fewest requests in flight; ties are broken at random.

    Without the random break, every proxy process would send its first request to worker-0.
    """
    lowest = min(loads[index] for index in candidates)
    return rng.choice([index for index in candidates if loads[index] == lowest])


class RoundRobin:
    """Choose the workers in turn, passing over those that are no candidates."""

    def __init__(self) -> None:
        self._last = -1

    def __call__(self, candidates: Sequence[int], loads: Sequence[int]) -> int:
        later = [index for index in candidates if index > self._last]
        self._last = min(later) if later else min(candidates)
        return self._last
