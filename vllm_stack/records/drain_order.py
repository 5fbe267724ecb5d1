"""An operator's order that the proxy sends a worker nothing new, whoever restarts meanwhile.

A file, not a message: it holds for every process of the proxy, those to come included, and whoever
gave it may be killed at any moment without anything being half done. Only `readmit`, or the end of
the roll that gave it, takes it back.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from vllm_stack.records.record import read_record, write_record


class Reason(StrEnum):
    """Why a worker is kept out of the choice."""

    BY_HAND = "by hand"
    ROLL = "roll"
    # The roll that restarted it got no good answer from it.
    UNFIT = "unfit"


@dataclass(frozen=True, slots=True)
class DrainOrder:
    """Since when (Unix time), by whom, why, and a word for a person."""

    since: float
    by: str
    reason: Reason
    detail: str = ""

    @property
    def story(self) -> str:
        """Say it in words, with the way out."""
        if self.reason is Reason.ROLL:
            return "a roll is at it, or was broken off: vllm-stack roll finishes it, readmit takes it back"
        if self.reason is Reason.UNFIT:
            return f"the roll stopped here: {self.detail}"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.since))
        return f"by {self.by} since {when}; vllm-stack readmit takes it back"


def give_order(path: Path, by: str, reason: Reason, detail: str = "") -> None:
    """Write the order down; raises `OSError`."""
    write_record(path, asdict(DrainOrder(time.time(), by, reason, detail)))


def read_order(path: Path) -> DrainOrder | None:
    """Read the order, None where there is none; a damaged one holds all the same, as for the proxy."""
    if not path.exists():
        return None
    fields = read_record(path)
    try:
        return DrainOrder(
            float(fields["since"]), str(fields["by"]), Reason(fields["reason"]), str(fields["detail"])
        )
    except (KeyError, TypeError, ValueError):
        return DrainOrder(0.0, "somebody", Reason.BY_HAND)
