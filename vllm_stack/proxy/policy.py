"""How a worker is chosen: functions of the candidates, their loads, and the request's key.

The figures behind `prefix` and its two bounds are in docs/routing.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from vllm_stack.proxy.homes import Homes
from vllm_stack.proxy.rendezvous import first_choice, hash_bytes, mix

# A conversation stays where its prefix is cached while that worker has less than 7/4 of the mean
# in flight, the request at hand included; where it begins, or moves to, has no more than the mean.
STAY = 7, 4


class Choice(Protocol):
    """One policy. Candidates are indices of workers, never none.

    `loads` are requests in flight, by index, over all processes. `key` is the request's routing
    key, None if it has none; `shared` tells that another request with this key is in flight.
    """

    def __call__(
        self, candidates: Sequence[int], loads: Sequence[int], key: int | None = None, shared: bool = False
    ) -> int: ...


def make_choice(
    policy: str,
    names: Sequence[str] = (),
    homes: Homes | None = None,
    rng: random.Random | None = None,
) -> Choice:
    """Give the choice function of a policy for workers of these names.

    Raises `ValueError` for a policy that is none.
    """
    source = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
    salts = [hash_bytes(name.encode()) for name in names]
    if policy == "prefix":
        return Prefix(salts, homes or Homes(), source)
    if policy == "session":
        return Session(salts, source)
    if policy == "least-loaded":
        return lambda candidates, loads, key=None, shared=False: least_loaded(candidates, loads, source)
    if policy == "round-robin":
        return RoundRobin()
    if policy == "random":
        return lambda candidates, loads, key=None, shared=False: source.choice(candidates)
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

    def __call__(
        self, candidates: Sequence[int], loads: Sequence[int], key: int | None = None, shared: bool = False
    ) -> int:
        later = [index for index in candidates if index > self._last]
        self._last = min(later) if later else min(candidates)
        return self._last


class Session:
    """Choose the key's own worker, however loaded; the least loaded one for a request without a key."""

    def __init__(self, salts: Sequence[int], rng: random.Random) -> None:
        self._salts = salts
        self._rng = rng

    def __call__(
        self, candidates: Sequence[int], loads: Sequence[int], key: int | None = None, shared: bool = False
    ) -> int:
        if key is None:
            return least_loaded(candidates, loads, self._rng)
        return first_choice(key, candidates, self._salts)


class Prefix:
    """Choose the worker that has the key's prefix in its cache, unless that is too loaded.

    A new key begins with the first worker in its rendezvous order that is not above the mean, and
    is remembered there. A known key leaves only a worker far above the mean, and then for good:
    one that went elsewhere for a single turn would pay for its prefix on both sides. A key with
    several requests at a time is no conversation but a prompt that many clients share; it is
    spread as evenly as new keys are.
    """

    def __init__(self, salts: Sequence[int], homes: Homes, rng: random.Random) -> None:
        self._salts = salts
        self._homes = homes
        self._rng = rng

    def __call__(
        self, candidates: Sequence[int], loads: Sequence[int], key: int | None = None, shared: bool = False
    ) -> int:
        if key is None:
            return least_loaded(candidates, loads, self._rng)
        key, home = self._look_up(key, candidates)
        if home is not None and not shared and loads[home] <= stay_limit(candidates, loads):
            return home
        place = first_choice(key, not_above_mean(candidates, loads), self._salts)
        if home is None or not shared:
            self._homes.put(key, place)
        return place

    def _look_up(self, key: int, candidates: Sequence[int]) -> tuple[int, int | None]:
        """Give the candidate that has the key's prefix, None if there is none, and the key it is known by.

        When its worker is out, whoever stands in is known by a key derived from both, so that the
        conversation comes home when the worker does.
        """
        home = self._homes.get(key)
        for _ in self._salts:
            if home is None or home in candidates:
                return key, home
            key = mix(key + home + 1)
            home = self._homes.get(key)
        return key, None


def total_of(candidates: Sequence[int], loads: Sequence[int]) -> int:
    """Give what all candidates have in flight; mostly they are all the workers there are."""
    return sum(loads if len(candidates) == len(loads) else [loads[index] for index in candidates])


def not_above_mean(candidates: Sequence[int], loads: Sequence[int]) -> list[int]:
    """Give the candidates, never none, that have no more in flight than the mean of them all."""
    mean = total_of(candidates, loads) // len(candidates)
    return [index for index in candidates if loads[index] <= mean]


def stay_limit(candidates: Sequence[int], loads: Sequence[int]) -> int:
    """Give the most a worker may have in flight to be sent another request of a conversation it knows.

    With it, the worker has at most ceil(7/4 x the mean). Rounding up leaves room where the numbers
    are small: of two workers, one may have the first three requests.
    """
    over, under = STAY
    total = total_of(candidates, loads) + 1
    return -(-over * total // (under * len(candidates))) - 1
