"""What the boxes of a Ray cluster have, and whether the replicas of a stack find a place there; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Box:
    """One node that lives, with what it has in all."""

    address: str
    is_head: bool
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
    return tuple(
        Box(str(node["node_ip"]), bool(node["is_head_node"]), dict(node["resources_total"]))
        for node in nodes
        if node["state"] == "ALIVE"
    )


def missing(wanted: Sequence[Wanted], boxes: Sequence[Box]) -> str | None:
    """Say in one sentence what the cluster has too little of; None if all find a place."""
    for resource in dict.fromkeys(one.resource for one in wanted):
        asked = [one for one in wanted if one.resource == resource]
        need = sum(one.replicas * one.stages * one.size for one in asked)
        has = [int(box.resources.get(resource, 0)) for box in boxes]
        there = f"the cluster has {sum(has)} {resource}{'s' * (sum(has) != 1)} on {_boxes(len(boxes))}"
        if sum(has) < need:
            return f"{there}, and {need} are needed"
        if not _find_places(asked, has):
            largest = max(one.size for one in asked)
            return f"{there}, but not in groups of {largest} on one box, as {need} are needed"
    return None


def _find_places(asked: Sequence[Wanted], has: Sequence[int]) -> bool:
    """Tell whether all groups find a box, the largest first, each on the box it fills best."""
    left = list(has)
    sizes = sorted((one.size for one in asked for _ in range(one.replicas * one.stages)), reverse=True)
    for size in sizes:
        fitting = [index for index, free in enumerate(left) if free >= size]
        if not fitting:
            return False
        left[min(fitting, key=lambda index: left[index])] -= size
    return True


def _boxes(count: int) -> str:
    return f"{count} box{'es' * (count != 1)}"
