"""The record of a worker's last failure, which the next start waits out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_stack.process_end import describe_end
from vllm_stack.program import boot_id
from vllm_stack.records.record import read_record, write_record

REMEMBERED = 100  # failures of one worker
EXAMINATION = 20.0  # seconds in which the last words of a server are read, or never


@dataclass(frozen=True, slots=True)
class Failure:
    """How a server ended without being asked to.

    `at` is on CLOCK_BOOTTIME (seconds, which go on in suspend and never jump) and means something
    only within the boot `boot`; `returncode` is negative for a signal, as in `subprocess`; `phase`
    is how far the server was (starting, ready). It is recorded twice: at once, and `examined` when
    nothing of the server is left: `cause` is a plain sentence then, None if it is not known, and
    `lines` are the last of its output. `in_row` counts the failures since a life that lasted,
    this one included.
    """

    at: float
    boot: str
    time: str
    returncode: int
    seconds_alive: float
    phase: str = "starting"
    cause: str | None = None
    evidence: str | None = None
    in_row: int = 1
    examined: bool = False
    lines: tuple[str, ...] = ()
    what: str = "vLLM"

    @property
    def how(self) -> str:
        """Say in words how it ended."""
        return describe_end(self.returncode)

    @property
    def story(self) -> str:
        """Say in words what ended, how, after how long, and why if that is known."""
        why = self.cause or "the cause is not known"
        return f"{self.what} {self.how} after {self.seconds_alive:.0f} s: {why}"

    @property
    def is_settled(self) -> bool:
        """Whether the record will not change any more: it is examined, or whoever would do it is gone."""
        age = self.age()
        return self.examined or age is None or not 0 <= age < EXAMINATION

    def age(self) -> float | None:
        """Give the seconds since the failure, None if the machine was booted since."""
        return boot_clock() - self.at if self.boot == boot_id() else None


def boot_clock() -> float:
    """Read the clock failures are recorded on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def new_failure(
    returncode: int, seconds_alive: float, phase: str, in_row: int = 1, what: str = "vLLM"
) -> Failure:
    """Give the failure of a server that has just ended."""
    return Failure(
        at=boot_clock(),
        boot=boot_id(),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        returncode=returncode,
        seconds_alive=round(seconds_alive, 1),
        phase=phase,
        in_row=in_row,
        what=what,
    )


def record_failure(path: Path, failure: Failure) -> None:
    """Write it down for the next start; raises `OSError`."""
    write_record(path, asdict(failure))


def remember_failure(path: Path, failure: Failure) -> None:
    """Add it to the history, a JSON object on each line, of which the last `REMEMBERED` stay.

    Raises `OSError`.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (FileNotFoundError, UnicodeDecodeError):
        lines = []
    lines = [*lines[1 - REMEMBERED :], json.dumps(asdict(failure))]
    fresh = path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n", "utf-8")
    fresh.replace(path)


def last_failure(path: Path) -> Failure | None:
    """Read the record; a missing or damaged one counts as no failure."""
    raw = read_record(path)
    try:
        return Failure(
            at=float(raw["at"]),
            boot=str(raw["boot"]),
            time=str(raw["time"]),
            returncode=int(raw["returncode"]),
            seconds_alive=float(raw["seconds_alive"]),
            phase=str(raw["phase"]),
            cause=None if raw["cause"] is None else str(raw["cause"]),
            evidence=None if raw["evidence"] is None else str(raw["evidence"]),
            in_row=int(raw["in_row"]),
            examined=bool(raw["examined"]),
            lines=tuple(map(str, raw["lines"])),
            what=str(raw.get("what", "vLLM")),
        )
    except (ValueError, KeyError, TypeError):
        return None


def restart_pause(failure: Failure, delay: float, longest: float) -> float:
    """Give the seconds from this failure to the next start.

    It is `delay`, and with a `longest` above that it doubles with every further failure in a row.
    """
    if longest <= delay:
        return delay
    return min(longest, delay * 2.0 ** min(failure.in_row - 1, 30))
