"""The failures of a worker that its wrapper keeps (`worker.failure`), read when there is a new one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from vllm_stack.process_end import describe_end
from vllm_stack.terminal_text import printable

# Of one worker, bytes at the end of the file: a failure has some last words, 10 kB at most.
_MOST = 512 * 1024
# Lines of a server's last words that are shown.
_LINES = 12
_LONGEST = 1000  # characters of a line


@dataclass(frozen=True, slots=True)
class PastFailure:
    """One failure: when (Unix time), how far and how old (seconds) the server was, why if that is known."""

    worker: str
    at: float
    how: str
    phase: str
    seconds_alive: float
    cause: str | None
    evidence: str | None
    lines: tuple[str, ...]


class PastFailures:
    """The history of one worker; nobody else need read its file while it does not change."""

    def __init__(self, worker: str, path: Path) -> None:
        self._worker = worker
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._failures: tuple[PastFailure, ...] = ()

    def read(self) -> tuple[PastFailure, ...]:
        """Give them, the newest last; none if the file cannot be read. Reads a disk."""
        try:
            with self._path.open("rb") as stream:
                status = os.fstat(stream.fileno())
                stamp = status.st_ino, status.st_mtime_ns, status.st_size
                if stamp != self._stamp:
                    stream.seek(max(0, status.st_size - _MOST))
                    lines = stream.read(_MOST).splitlines()
                    self._failures = tuple(_failures(self._worker, lines))
                    self._stamp = stamp
        except OSError:
            self._stamp, self._failures = None, ()
        return self._failures


def _failures(worker: str, lines: Iterable[bytes]) -> Iterator[PastFailure]:
    """Read what can be read: the first line may be half a one."""
    for line in lines:
        try:
            raw = json.loads(line)
            yield _failure(worker, raw)
        except (ValueError, KeyError, TypeError):
            continue


def _failure(worker: str, raw: dict[str, Any]) -> PastFailure:
    return PastFailure(
        worker=worker,
        at=datetime.strptime(raw["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp(),
        how=describe_end(int(raw["returncode"])),
        phase=str(raw["phase"]),
        seconds_alive=float(raw["seconds_alive"]),
        cause=None if raw["cause"] is None else printable(str(raw["cause"])),
        evidence=None if raw["evidence"] is None else printable(str(raw["evidence"])),
        lines=tuple(printable(str(line))[:_LONGEST] for line in raw["lines"][-_LINES:]),
    )
