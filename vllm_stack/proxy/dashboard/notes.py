"""What the wrapper of a worker has noted of what it does, as `worker.phase` writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_stack.record import read_record


@dataclass(frozen=True, slots=True)
class Note:
    """A phase (`worker.phase.Phase`), since when, until when if that is known (Unix times), and words."""

    phase: str
    since: float
    until: float | None
    detail: str


def read_note(path: Path) -> Note | None:
    """Read the note; None if there is none, or if the wrapper that wrote it is gone."""
    fields = read_record(path)
    try:
        if abs(psutil.Process(int(fields["pid"])).create_time() - float(fields["started"])) > 1:
            return None
        until = fields["until"]
        return Note(
            str(fields["phase"]),
            float(fields["since"]),
            None if until is None else float(until),
            str(fields["detail"]),
        )
    except (ValueError, KeyError, TypeError, psutil.Error):
        return None
