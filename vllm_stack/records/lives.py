"""How often a worker was started and has failed, ever: counted by its wrapper, shown by the proxy.

The record outlives every stop, so what a database of metrics makes of the counts is true over days. It is no
more than a count: one that is damaged, or lost with a full disk, begins at 0 again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vllm_stack.records.record import read_record, write_record


@dataclass(frozen=True, slots=True)
class Lives:
    """The starts of a worker's server, those that failed at once included, and its failures."""

    starts: int = 0
    failures: int = 0


def read_lives(path: Path) -> Lives:
    """Read the record; a missing or damaged one counts nothing."""
    fields = read_record(path)
    return Lives(_count(fields.get("starts")), _count(fields.get("failures")))


def count_start(path: Path) -> None:
    """Count a start; raises `OSError`."""
    lives = read_lives(path)
    _write(path, replace(lives, starts=lives.starts + 1))


def count_failure(path: Path) -> None:
    """Count a failure; raises `OSError`."""
    lives = read_lives(path)
    _write(path, replace(lives, failures=lives.failures + 1))


def _count(value: object) -> int:
    return value if type(value) is int and value >= 0 else 0


def _write(path: Path, lives: Lives) -> None:
    write_record(path, asdict(lives))
