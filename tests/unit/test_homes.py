"""The memory that all proxy processes share: a hint that is right or absent."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.proxy.homes import Homes

KEYS = st.integers(0, 2**64 - 1)


@given(key=KEYS, worker=st.integers(0, 1000))
def test_what_was_put_is_found_again(key: int, worker: int) -> None:
    homes = Homes()
    assert homes.get(key) is None
    homes.put(key, worker)
    assert homes.get(key) == worker


@given(key=KEYS, high=st.integers(1, 2**48 - 1))
def test_a_key_that_takes_over_a_slot_is_not_mistaken_for_the_one_before(key: int, high: int) -> None:
    homes, rival = Homes(), key ^ high << 16
    homes.put(key, 1)
    assert homes.get(rival) is None
    homes.put(rival, 2)
    assert homes.get(key) is None
    assert homes.get(rival) == 2


def test_a_forked_process_remembers_in_the_memory_of_its_parent() -> None:
    homes = Homes()
    child = os.fork()
    if child == 0:
        homes.put(12345, 3)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert homes.get(12345) == 3
