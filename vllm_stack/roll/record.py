"""How far a roll has come, so that the next one can finish it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vllm_stack.records.record import read_record, write_record


@dataclass(frozen=True, slots=True)
class RollRecord:
    """A roll that began at `began` (Unix time): the names it is to restart, and those it has restarted.

    `targets` are the fingerprints of the options that they get.
    """

    began: float
    by: str
    targets: dict[str, str]
    done: tuple[str, ...] = ()

    @property
    def left(self) -> list[str]:
        """Name those that are still as they were before."""
        return [name for name in self.targets if name not in self.done]

    def with_done(self, name: str) -> RollRecord:
        """Note that one more is finished."""
        return replace(self, done=tuple(dict.fromkeys((*self.done, name))))


def begin_or_go_on(before: RollRecord | None, by: str, targets: dict[str, str]) -> RollRecord:
    """Go on with the roll that was broken off, if it was to bring the same about, or more; else begin one.

    What was restarted since then with the same options need not be again.
    """
    if before is not None and before.left and targets.items() <= before.targets.items():
        return before
    return RollRecord(time.time(), by, targets)


def read_roll(path: Path) -> RollRecord | None:
    """Read the record of a roll that did not come to its end; None if there is none."""
    fields = read_record(path)
    try:
        return RollRecord(
            float(fields["began"]), str(fields["by"]), dict(fields["targets"]), tuple(fields["done"])
        )
    except (KeyError, TypeError, ValueError):
        return None


def write_roll(path: Path, record: RollRecord) -> None:
    """Write it down; raises `OSError`."""
    write_record(path, asdict(record))
