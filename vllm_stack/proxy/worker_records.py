"""What a worker's wrapper has written down about it, as the metrics tell it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from vllm_stack.layout import failure_record, lives_record, phase_note
from vllm_stack.process_end import describe_end
from vllm_stack.records.lives import Lives, read_lives
from vllm_stack.records.phase import PhaseNote, read_phase
from vllm_stack.records.record import read_record
from vllm_stack.terminal_text import printable

# Characters of a cause: it is the value of a label.
_LONGEST = 300


@dataclass(frozen=True, slots=True)
class LastFailure:
    """When a worker failed last (Unix time), how its server ended, and why."""

    at: float
    how: str
    cause: str


@dataclass(frozen=True, slots=True)
class WorkerRecords:
    """How often it lived, its last failure since a deliberate stop, and what its wrapper does if it lives."""

    lives: Lives
    failure: LastFailure | None
    note: PhaseNote | None


def read_records(state: Path, name: str) -> WorkerRecords:
    """Read them; what is missing or damaged counts as nothing. Reads a disk."""
    return WorkerRecords(
        read_lives(lives_record(state, name)),
        _read_failure(failure_record(state, name)),
        read_phase(phase_note(state, name)),
    )


def _read_failure(path: Path) -> LastFailure | None:
    raw = read_record(path)
    try:
        return LastFailure(
            at=datetime.strptime(raw["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp(),
            how=describe_end(int(raw["returncode"])),
            cause="not known" if raw["cause"] is None else printable(str(raw["cause"]))[:_LONGEST],
        )
    except (ValueError, KeyError, TypeError):
        return None
