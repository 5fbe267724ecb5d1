"""What the boxes of a Ray cluster have, and whether the replicas of a stack find a place there; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Places that are tried in vain before there are said to be none: what takes longer to find, Ray, which tries
# nothing twice, would not find either.
_TRIES = 5_000


@dataclass(frozen=True, slots=True)
class Box:
    """One node that lives, with what it has in all."""

    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the replicas of one model take: `stages` groups of `size` on one box each, of a resource."""

    replicas: int
    stages: int
    size: int
    resource: str


def boxes_of(nodes: Sequence[Mapping[str, Any]]) -> tuple[Box, ...]:
    """Read Ray's list of nodes (`/api/v0/nodes` of its dashboard); those that died are left out."""
    return tuple(Box(dict(node["resources_total"])) for node in nodes if node["state"] == "ALIVE")


def missing(wanted: Sequence[Wanted], boxes: Sequence[Box]) -> str | None:
    """Say in one sentence what the cluster has too little of; None if all find a place."""
    for resource in dict.fromkeys(one.resource for one in wanted):
        asked = [one for one in wanted if one.resource == resource]
        need = sum(one.replicas * one.stages * one.size for one in asked)
        has = [int(box.resources.get(resource, 0)) for box in boxes]
        there = f"the cluster has {sum(has)} {resource}{'s' * (sum(has) != 1)} on {_boxes(len(boxes))}"
        if sum(has) < need:
            return f"{there}, and {need} {'is' if need == 1 else 'are'} needed"
        if not _find_places(asked, has):
            largest = max(one.size for one in asked)
            return f"{there}, but not in groups of {largest} on one box, as {need} are needed"
    return None


def _find_places(asked: Sequence[Wanted], has: Sequence[int]) -> bool:
    """Tell whether all groups find a box, the largest first, each on the box it fills best if that will do.

    Where it will not, the other boxes are tried, too: groups of 3 and 2, 2, 2 find a place on boxes of 5 and
    4 only if the first one leaves the box of 4 to others.
    """
    sizes = sorted((one.size for one in asked for _ in range(one.replicas * one.stages)), reverse=True)
    one_will_do = _chains(sizes)
    ways = [(0, tuple(sorted(has)))]
    seen = set(ways)
    for _ in range(len(sizes) + _TRIES):
        if not ways:
            return False
        placed, left = ways.pop()
        if placed == len(sizes):
            return True
        frees = sorted({free for free in left if free >= sizes[placed]})
        for free in reversed(frees[:1] if one_will_do[placed] else frees):
            way = (placed + 1, _less(left, free, sizes[placed]))
            if way not in seen:
                seen.add(way)
                ways.append(way)
    return False


def _chains(sizes: Sequence[int]) -> list[bool]:
    """Tell for each place in falling `sizes` whether from there on each is a multiple of the next.

    Then it does not matter which box is taken: what is on the other one instead, or as much of it as makes
    the same size, could change places with it.
    """
    chains = [True] * len(sizes)
    for place in range(len(sizes) - 2, -1, -1):
        chains[place] = chains[place + 1] and sizes[place] % sizes[place + 1] == 0
    return chains


def _less(left: tuple[int, ...], free: int, size: int) -> tuple[int, ...]:
    """Take `size` from a box that has `free`."""
    at = left.index(free)
    return tuple(sorted((*left[:at], free - size, *left[at + 1 :])))


def _boxes(count: int) -> str:
    return f"{count} box{'es' * (count != 1)}"
