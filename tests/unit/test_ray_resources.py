"""Whether the replicas of a stack find a place on the boxes of a cluster, held against all ways there are."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vllm_stack.ray.resources import Box, Wanted, boxes_of, missing


def boxes(*gpus: float, resource: str = "GPU") -> list[Box]:
    """Give boxes with so many GPUs each; what has none does not name them, as Ray has it."""
    return [Box({resource: count} if count else {"memory": 1e9}) for count in gpus]


def wanted(replicas: int = 1, size: int = 1, stages: int = 1, resource: str = "GPU") -> Wanted:
    return Wanted(replicas=replicas, stages=stages, size=size, resource=resource)


def node(state: str = "ALIVE", **changes: Any) -> dict[str, Any]:
    facts = {"node_ip": "10.0.0.1", "is_head_node": True, "state": state, "resources_total": {"GPU": 2.0}}
    return {**facts, **changes}


def test_boxes_that_died_are_not_counted() -> None:
    found = boxes_of([node(), node("DEAD", node_ip="10.0.0.2"), node(node_ip="10.0.0.3", is_head_node=False)])
    assert found == (Box({"GPU": 2.0}), Box({"GPU": 2.0}))


@pytest.mark.parametrize(
    ("asked", "there", "lack"),
    [
        ([wanted(2)], (1,), "the cluster has 1 GPU on 1 box, and 2 are needed"),
        ([wanted(1)], (), "the cluster has 0 GPUs on 0 boxes, and 1 is needed"),
        ([wanted(1)], (0,), "the cluster has 0 GPUs on 1 box, and 1 is needed"),
        ([wanted(2, size=2), wanted(1)], (2, 2), "the cluster has 4 GPUs on 2 boxes, and 5 are needed"),
        ([wanted(2, size=2, stages=2)], (4,), "the cluster has 4 GPUs on 1 box, and 8 are needed"),
        (
            [wanted(1, size=4), wanted(1)],
            (3, 3),
            "the cluster has 6 GPUs on 2 boxes, but not in groups of 4 on one box, as 5 are needed",
        ),
        ([wanted(3, resource="CPU")], (), "the cluster has 0 CPUs on 0 boxes, and 3 are needed"),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(
    asked: list[Wanted], there: tuple[int, ...], lack: str
) -> None:
    assert missing(asked, boxes(*there)) == lack


def test_the_gpus_of_a_group_are_on_one_box_and_stages_may_be_apart() -> None:
    assert missing([wanted(1, size=2)], boxes(1, 1)) is not None
    assert missing([wanted(1, size=2)], boxes(0, 2)) is None
    assert missing([wanted(1, size=1, stages=2)], boxes(1, 1)) is None
    assert missing([wanted(1, size=2, stages=2)], boxes(2, 1, 2)) is None
    assert missing([wanted(1, size=2, stages=2)], boxes(3, 1)) is not None


def test_a_small_model_does_not_take_the_place_of_a_large_one() -> None:
    assert missing([wanted(2, size=1), wanted(1, size=4)], boxes(4, 2)) is None
    assert missing([wanted(1, size=1), wanted(2, size=4)], boxes(4, 4, 1)) is None


def test_cores_and_gpus_are_counted_apart() -> None:
    both = [Box({"GPU": 2.0, "CPU": 1.0})]
    assert missing([wanted(2), wanted(1, resource="CPU")], both) is None
    lack = missing([wanted(2), wanted(2, resource="CPU")], both)
    assert lack == "the cluster has 1 CPU on 1 box, and 2 are needed"


@pytest.mark.parametrize(
    ("sizes", "there"),
    [((3, 2, 2, 2), (5, 4)), ((4, 3, 3, 2, 2, 2), (8, 8)), ((6, 4, 3, 3, 2, 2), (10, 10))],
)
def test_a_place_is_found_also_where_the_box_that_is_filled_best_is_the_wrong_one(
    sizes: tuple[int, ...], there: tuple[int, ...]
) -> None:
    assert missing([wanted(size=size) for size in sizes], boxes(*there)) is None


def has_places(sizes: tuple[int, ...], free: tuple[int, ...]) -> bool:
    """Try every box for every group."""

    @cache
    def fits(place: int, left: tuple[int, ...]) -> bool:
        return place == len(sizes) or any(
            fits(place + 1, (*left[:box], has - sizes[place], *left[box + 1 :]))
            for box, has in enumerate(left)
            if has >= sizes[place]
        )

    return fits(0, free)


MODELS = st.lists(
    st.builds(wanted, st.integers(1, 3), st.integers(1, 5), st.integers(1, 2)), min_size=1, max_size=3
)


@settings(max_examples=300, deadline=None)
@given(MODELS, st.lists(st.integers(0, 9), max_size=4))
@example([wanted(1, 3), wanted(3, 2)], [5, 4])
@example([wanted(1, 4), wanted(2, 3), wanted(3, 2)], [8, 8])
def test_a_place_is_found_if_and_only_if_there_is_one(models: list[Wanted], there: list[int]) -> None:
    sizes = tuple(one.size for one in models for _ in range(one.replicas * one.stages))
    assert (missing(models, boxes(*there)) is None) == has_places(sizes, tuple(there))


@given(MODELS, st.lists(st.integers(0, 9), max_size=4), st.integers(0, 9))
def test_one_more_box_never_takes_a_place_away(models: list[Wanted], there: list[int], more: int) -> None:
    if missing(models, boxes(*there)) is None:
        assert missing(models, boxes(*there, more)) is None


@pytest.mark.parametrize(
    ("models", "there"),
    [
        ([wanted(1024, size=8), wanted(1024, size=3), wanted(1024)], [8] * 1700),
        # Found by looking for what takes longest to be refused.
        (
            [wanted(9, size=5), wanted(7, size=7), wanted(12, size=2), wanted(12, size=5)],
            [6, 14, 8, 4, 5, 7, 13, 14, 4, 10, 13, 4, 12, 4, 6, 14, 16, 13, 4, 16],
        ),
    ],
)
def test_an_answer_comes_in_good_time_however_many_there_are(models: list[Wanted], there: list[int]) -> None:
    """The head asks every two seconds."""
    began = time.process_time()
    missing(models, boxes(*there))
    assert time.process_time() - began < 1.5
