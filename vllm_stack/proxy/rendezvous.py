"""Rendezvous hashing: every key has an order of preference among the workers.

Each process finds the same order without asking anyone. A worker that goes away leaves the order
of the others as it was, so that only its own keys move, and they come back to it when it returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_64_BITS = (1 << 64) - 1


def hash_bytes(data: bytes) -> int:
    """Hash to 64 bits, the same in every process (Python's own `hash` is salted for each)."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def mix(value: int) -> int:
    """Scatter 64 bits: the finaliser of splitmix64, a quarter of the cost of a digest."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _64_BITS
    return value ^ value >> 31


def first_choice(key: int, candidates: Sequence[int], salts: Sequence[int]) -> int:
    """Give the candidate that `key` prefers; `salts` are hashes of the workers' names, by index."""
    best, highest = candidates[0], -1
    for index in candidates:
        score = mix(key ^ salts[index])
        if score > highest:
            best, highest = index, score
    return best
