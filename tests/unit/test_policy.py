from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.proxy.policy import RoundRobin, least_loaded, make_choice


@given(loads=st.lists(st.integers(0, 5), min_size=1, max_size=8), data=st.data())
def test_least_loaded_chooses_a_candidate_with_the_fewest_in_flight(
    loads: list[int], data: st.DataObject
) -> None:
    candidates = data.draw(st.lists(st.sampled_from(range(len(loads))), min_size=1, unique=True))
    chosen = least_loaded(candidates, loads, random.Random(1))
    assert chosen in candidates
    assert loads[chosen] == min(loads[index] for index in candidates)


def test_ties_are_broken_evenly() -> None:
    rng = random.Random(1)
    counts = Counter(least_loaded([0, 1, 2], [4, 4, 4], rng) for _ in range(3000))
    assert counts.keys() == {0, 1, 2}
    assert min(counts.values()) > 900


def test_round_robin_takes_turns() -> None:
    choose = RoundRobin()
    assert [choose([0, 1, 2], []) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_round_robin_passes_over_those_that_are_out() -> None:
    choose = RoundRobin()
    turns = [choose(candidates, []) for candidates in ([0, 1, 2], [0, 2], [0, 2], [1], [0, 1, 2])]
    assert turns == [0, 2, 0, 1, 2]


@pytest.mark.parametrize("policy", ["least-loaded", "round-robin", "random"])
def test_every_policy_chooses_a_candidate(policy: str) -> None:
    choose = make_choice(policy, random.Random(1))
    chosen = {choose([1, 3], [9, 0, 0, 0]) for _ in range(50)}
    assert chosen == {1, 3}


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="fastest"):
        make_choice("fastest")
