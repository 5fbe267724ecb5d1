"""Rendezvous hashing: the same for everyone, even, and with the least possible movement."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.proxy.rendezvous import first_choice, hash_bytes

SALTS = [hash_bytes(b"worker-%d" % index) for index in range(8)]


@given(key=st.integers(0, 2**64 - 1), workers=st.sets(st.integers(0, 7), min_size=2))
def test_taking_one_away_moves_only_its_keys(key: int, workers: set[int]) -> None:
    chosen = first_choice(key, sorted(workers), SALTS)
    for gone in workers - {chosen}:
        assert first_choice(key, sorted(workers - {gone}), SALTS) == chosen


def test_keys_are_spread_evenly_and_so_are_their_second_choices() -> None:
    keys = [hash_bytes(b"key %d" % number) for number in range(8000)]
    first = {key: first_choice(key, range(8), SALTS) for key in keys}
    assert all(880 < count < 1120 for count in Counter(first.values()).values())
    of_zero = [key for key in keys if first[key] == 0]
    second = Counter(first_choice(key, range(1, 8), SALTS) for key in of_zero)
    assert len(second) == 7
    assert min(second.values()) > len(of_zero) / 7 * 0.7


def test_another_process_with_another_hash_seed_agrees() -> None:
    code = (
        "from vllm_stack.proxy.rendezvous import *;"
        "s=[hash_bytes(b'worker-%d'%i) for i in range(8)];"
        "print([first_choice(hash_bytes(b'%d'%k),range(8),s) for k in range(50)])"
    )
    answers = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True).stdout
        for seed in ("1", "2")
    }
    expected = [first_choice(hash_bytes(b"%d" % key), range(8), SALTS) for key in range(50)]
    assert answers == {f"{expected}\n".encode()}
