"""Which worker each policy chooses, as a function of loads, key and memory."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.proxy.homes import Homes
from vllm_stack.proxy.policy import (
    Choice,
    RoundRobin,
    least_loaded,
    make_choice,
    not_above_mean,
    stay_limit,
)
from vllm_stack.proxy.rendezvous import hash_bytes

KEYS = st.integers(0, 2**64 - 1)
LOADS = st.lists(st.integers(0, 200), min_size=1, max_size=8)


def names(count: int) -> list[str]:
    return [f"worker-{index}" for index in range(count)]


def prefix(workers: int = 2, homes: Homes | None = None) -> Choice:
    return make_choice("prefix", names(workers), homes, random.Random(1))


def some_of(loads: Sequence[int], data: st.DataObject) -> list[int]:
    chosen = data.draw(st.sets(st.sampled_from(range(len(loads))), min_size=1))
    return sorted(chosen)


# ------------------------------------------------------------------ without a key


@given(loads=LOADS, data=st.data())
def test_least_loaded_chooses_a_candidate_with_the_fewest_in_flight(
    loads: list[int], data: st.DataObject
) -> None:
    candidates = some_of(loads, data)
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


@pytest.mark.parametrize("policy", ["prefix", "session", "least-loaded", "round-robin", "random"])
def test_every_policy_chooses_a_candidate(policy: str) -> None:
    choose = make_choice(policy, names(4), rng=random.Random(1))
    chosen = {choose([1, 3], [9, 0, 0, 0]) for _ in range(50)}
    assert chosen == {1, 3}


@pytest.mark.parametrize("policy", ["prefix", "session"])
def test_without_a_key_affinity_means_the_least_loaded(policy: str) -> None:
    choose = make_choice(policy, names(3))
    assert {choose([0, 1, 2], [3, 1, 2]) for _ in range(20)} == {1}


def test_an_unknown_policy_is_an_error() -> None:
    with pytest.raises(ValueError, match="fastest"):
        make_choice("fastest")


# ------------------------------------------------------------------ session


@given(key=KEYS, loads=LOADS, other=LOADS)
def test_a_session_stays_with_its_worker_however_loaded(key: int, loads: list[int], other: list[int]) -> None:
    count = min(len(loads), len(other))
    candidates = list(range(count))
    choose = make_choice("session", names(count))
    assert choose(candidates, loads, key) == choose(candidates, other, key, True)


@given(key=KEYS, workers=st.integers(2, 8), data=st.data())
def test_a_worker_that_goes_away_moves_no_session_but_its_own(
    key: int, workers: int, data: st.DataObject
) -> None:
    loads = [0] * workers
    everyone = list(range(workers))
    out = data.draw(st.sampled_from(everyone))
    choose = make_choice("session", names(workers))
    before = choose(everyone, loads, key)
    during = choose([index for index in everyone if index != out], loads, key)
    assert during == before or before == out
    assert choose(everyone, loads, key) == before


# ------------------------------------------------------------------ prefix


@given(loads=LOADS, data=st.data())
def test_somebody_is_never_above_the_mean(loads: list[int], data: st.DataObject) -> None:
    candidates = some_of(loads, data)
    mean = sum(loads[index] for index in candidates) / len(candidates)
    chosen = not_above_mean(candidates, loads)
    assert chosen
    assert all(loads[index] <= mean for index in chosen)


@given(loads=LOADS, data=st.data())
def test_a_worker_that_takes_one_more_to_its_limit_stays_within_seven_quarters_of_the_mean(
    loads: list[int], data: st.DataObject
) -> None:
    candidates = some_of(loads, data)
    mean = (sum(loads[index] for index in candidates) + 1) / len(candidates)
    assert stay_limit(candidates, loads) + 1 == math.ceil(1.75 * mean)


@given(steps=st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=200), workers=st.integers(2, 8))
def test_no_choice_ever_loads_a_worker_beyond_the_bound(steps: list[tuple[int, bool]], workers: int) -> None:
    choose, rng = prefix(workers), random.Random(1)
    loads, busy = [0] * workers, list[tuple[int, int]]()
    everyone = list(range(workers))
    for number, ends in steps:
        if ends and busy:
            _, worker = busy.pop(rng.randrange(len(busy)))
            loads[worker] -= 1
            continue
        key = hash_bytes(b"%d" % number)
        worker = choose(everyone, loads, key, any(key == other for other, _ in busy))
        bound = math.ceil(1.75 * (sum(loads) + 1) / workers)
        loads[worker] += 1
        busy.append((key, worker))
        assert loads[worker] <= bound


def test_a_conversation_stays_while_its_worker_is_somewhat_busier_and_moves_for_good_when_far() -> None:
    choose, key = prefix(), hash_bytes(b"a conversation")
    home = choose([0, 1], [0, 0], key)
    other = 1 - home

    def turn(at_home: int, elsewhere: int) -> int:
        loads = [at_home, elsewhere] if home == 0 else [elsewhere, at_home]
        return choose([0, 1], loads, key)

    assert turn(2, 0) == home  # three requests of one worker harm nobody
    assert turn(5, 2) == home
    assert turn(7, 0) == other
    assert turn(0, 2) == other  # its prefix is there now: it does not go back and forth


def test_a_new_conversation_begins_with_nobody_above_the_mean() -> None:
    choose = prefix()
    begun = Counter(choose([0, 1], [5, 4], hash_bytes(b"%d" % number)) for number in range(100))
    assert begun == {1: 100}


def test_new_conversations_spread_over_idle_workers() -> None:
    choose = prefix(4)
    begun = Counter(choose([0, 1, 2, 3], [0] * 4, hash_bytes(b"%d" % number)) for number in range(4000))
    assert min(begun.values()) > 850


def test_a_prompt_that_many_send_at_once_is_spread_as_evenly_as_the_load_allows() -> None:
    choose, key, loads = prefix(4), hash_bytes(b"the same prompt for all"), [0] * 4
    for number in range(64):
        loads[choose([0, 1, 2, 3], loads, key, number > 0)] += 1
    assert loads == [16] * 4


def test_sharing_a_prompt_for_a_moment_does_not_lose_its_home() -> None:
    choose, key = prefix(), hash_bytes(b"a conversation with two questions at once")
    home = choose([0, 1], [0, 0], key)
    loads = [1, 0] if home == 0 else [0, 1]
    assert choose([0, 1], loads, key, True) == 1 - home
    assert choose([0, 1], [0, 0], key) == home


@given(keys=st.lists(KEYS, min_size=1, max_size=50, unique=True), workers=st.integers(3, 6), data=st.data())
def test_a_worker_that_goes_away_moves_only_its_own_conversations_and_gets_them_back(
    keys: list[int], workers: int, data: st.DataObject
) -> None:
    choose, loads, everyone = prefix(workers), [0] * workers, list(range(workers))
    before = {key: choose(everyone, loads, key) for key in keys}
    known = {key: home for key, home in before.items() if choose(everyone, loads, key) == home}
    out = data.draw(st.sampled_from(everyone))
    left = [index for index in everyone if index != out]
    during = {key: choose(left, loads, key) for key in known}
    assert all(during[key] == home for key, home in known.items() if home != out)
    assert {key: choose(left, loads, key) for key in known} == during
    assert {key: choose(everyone, loads, key) for key in known} == known


def test_the_stand_in_of_a_worker_that_is_out_keeps_its_conversations_whatever_the_load() -> None:
    choose, key = prefix(3), hash_bytes(b"a conversation")
    home = choose([0, 1, 2], [0, 0, 0], key)
    left = [index for index in range(3) if index != home]
    stand_in = choose(left, [0, 0, 0], key)
    loads = [1 if index == stand_in else 0 for index in range(3)]
    assert choose(left, loads, key) == stand_in


@given(key=KEYS)
def test_all_processes_choose_alike_whichever_saw_the_conversation_first(key: int) -> None:
    homes = Homes()
    one, another = prefix(3, homes), prefix(3, homes)
    home = one([0, 1, 2], [1, 0, 0], key)
    assert another([0, 1, 2], [0, 1, 1], key) == home
    assert prefix(3)([0, 1, 2], [0, 0, 0], key) == prefix(3)([0, 1, 2], [0, 0, 0], key)
