"""Whether replicas find a place on the boxes of a cluster."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.ray.resources import Box, Wanted, boxes_of, missing


def boxes(*gpus: int) -> list[Box]:
    return [Box(f"10.0.0.{number}", not number, {"GPU": float(count)}) for number, count in enumerate(gpus)]


def test_what_is_missing_is_said_with_what_is_there() -> None:
    assert missing([Wanted(2, 1, 1, "GPU")], boxes(1)) == ("the cluster has 1 GPU on 1 box, and 2 are needed")
    assert missing([Wanted(1, 1, 4, "GPU")], boxes(2, 2)) == (
        "the cluster has 4 GPUs on 2 boxes, but not in groups of 4 on one box, as 4 are needed"
    )
    assert missing([Wanted(1, 2, 2, "GPU")], boxes(2, 2)) is None
    assert missing([Wanted(1, 1, 1, "GPU")], [Box("10.0.0.1", True, {"CPU": 8.0})]) is not None


def test_boxes_that_died_do_not_count() -> None:
    node = {"node_ip": "10.0.0.1", "is_head_node": True, "state": "ALIVE", "resources_total": {"GPU": 2.0}}
    dead = {**node, "node_ip": "10.0.0.2", "is_head_node": False, "state": "DEAD"}
    assert [box.address for box in boxes_of([node, dead])] == ["10.0.0.1"]


def possible(sizes: list[int], has: tuple[int, ...]) -> bool:
    """Try every way to give each group a box."""
    for places in product(range(len(has)), repeat=len(sizes)):
        used = [0] * len(has)
        for size, place in zip(sizes, places, strict=True):
            used[place] += size
        if all(taken <= free for taken, free in zip(used, has, strict=True)):
            return True
    return not sizes


@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=2
    ),
    st.lists(st.integers(0, 8), min_size=1, max_size=3),
)
def test_a_place_is_found_exactly_where_there_is_one(
    asked: list[tuple[int, int, int]], has: list[int]
) -> None:
    """Groups are of powers of two, for which the largest first is as good as trying all ways."""
    wanted = [Wanted(*one, "GPU") for one in asked]
    sizes = [size for replicas, stages, size in asked for _ in range(replicas * stages)]
    assert (missing(wanted, boxes(*has)) is None) == possible(sizes, tuple(has))
