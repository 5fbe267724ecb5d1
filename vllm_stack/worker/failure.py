"""The record of a worker's last failure, which the next start waits out."""

from __future__ import annotations

import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from vllm_stack.program import boot_id
from vllm_stack.record import read_record, write_record


@dataclass(frozen=True, slots=True)
class Failure:
    """How a server ended without being asked to.

    `at` is on CLOCK_BOOTTIME (seconds, which go on in suspend and never jump) and means something
    only within the boot `boot`; `returncode` is negative for a signal, as in `subprocess`.
    """

    at: float
    boot: str
    time: str
    returncode: int
    seconds_alive: float

    @property
    def how(self) -> str:
        """Say in words how it ended."""
        return describe_end(self.returncode)

    def age(self) -> float | None:
        """Give the seconds since the failure, None if the machine was booted since."""
        return boot_clock() - self.at if self.boot == boot_id() else None


def describe_end(returncode: int) -> str:
    """Say in words how a process ended, from its return code as `subprocess` gives it."""
    if returncode < 0:
        return f"was killed by {_signal_name(-returncode)}"
    return f"ended with exit code {returncode}"


def boot_clock() -> float:
    """Read the clock failures are recorded on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def record_failure(path: Path, returncode: int, seconds_alive: float) -> Failure:
    """Write down that the server has just ended; raises `OSError`."""
    failure = Failure(
        at=boot_clock(),
        boot=boot_id(),
        time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        returncode=returncode,
        seconds_alive=round(seconds_alive, 1),
    )
    write_record(path, asdict(failure))
    return failure


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
        )
    except (ValueError, KeyError, TypeError):
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
