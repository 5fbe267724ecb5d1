"""What a worker is doing right now, noted by its wrapper for whoever asks."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from vllm_stack.records.record import read_record, write_record


class Phase(StrEnum):
    """The phases of a life, in their order; `READY` means that vLLM's /health said 200."""

    WAITING = "waiting"  # the delay after a failure
    QUEUED = "queued"  # another worker starts first
    BLOCKED = "blocked"  # the memory of its GPUs is not free
    STARTING = "starting"
    READY = "ready"
    WEDGED = "wedged"  # evidence is being taken, then it is killed
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class PhaseNote:
    """A phase, since when (Unix time), until when if that is known, and a word for a person."""

    phase: Phase
    since: float
    until: float | None
    detail: str


def write_phase(path: Path, phase: Phase, detail: str = "", until: float | None = None) -> None:
    """Note the phase of the worker whose wrapper this process is; raises `OSError`."""
    note = PhaseNote(phase, time.time(), until, detail)
    me = psutil.Process()
    write_record(path, {**asdict(note), "pid": me.pid, "started": me.create_time()})


def read_phase(path: Path) -> PhaseNote | None:
    """Read the note; None if there is none, or if the wrapper that wrote it is gone."""
    fields = read_record(path)
    try:
        if abs(psutil.Process(int(fields["pid"])).create_time() - float(fields["started"])) > 1:
            return None
        until = fields["until"]
        return PhaseNote(
            Phase(fields["phase"]),
            float(fields["since"]),
            None if until is None else float(until),
            str(fields["detail"]),
        )
    except (ValueError, KeyError, TypeError, psutil.Error):
        return None
