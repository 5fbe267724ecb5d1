"""Every process the benchmark starts, so that each of them ends, however the benchmark does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

# Seconds between TERM and KILL; nothing here has anything to save.
GRACE = 3.0


class Processes:
    """Starts processes, each in a session of its own, and ends them with all that they started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(*self._running)

    def start(
        self,
        name: str,
        argv: Sequence[str | Path],
        cores: Sequence[int],
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a server on some cores; what it says goes to NAME.log in the directory."""
        with open(self.log(name), "ab") as output:
            return self._start(argv, cores, output, env=env, cwd=cwd, stdin=subprocess.DEVNULL)

    def start_client(
        self, name: str, argv: Sequence[str | Path], cores: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        """Start a process that is talked to by standard input and output."""
        with open(self.log(name), "ab") as errors:
            return self._start(argv, cores, subprocess.PIPE, stdin=subprocess.PIPE, stderr=errors)

    def _start(
        self,
        argv: Sequence[str | Path],
        cores: Sequence[int],
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int = subprocess.STDOUT,
        **settings: object,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # type: ignore[call-overload]
            [str(word) for word in argv],
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, cores),
            **settings,
        )
        self._running.append(process)
        return process

    def end(self, *processes: subprocess.Popen[bytes]) -> None:
        """End them and their process groups: TERM first, KILL for what stays."""
        for process in processes:
            _signal(process, signal.SIGTERM)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            # The group may outlive its leader, so this one is for those that are left.
            _signal(process, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            if process in self._running:
                self._running.remove(process)

    def log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def last_words(self, name: str, lines: int = 5) -> str:
        """Give the end of a process's log: why it did not start."""
        try:
            return "\n".join(self.log(name).read_text("utf-8", "replace").splitlines()[-lines:])
        except OSError:
            return ""


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
