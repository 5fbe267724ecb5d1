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

import psutil

_STOPS = (signal.SIGINT, signal.SIGTERM)


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
        # A second Ctrl-C must not keep us from ending what the first one has left.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            self.end(*self._running)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

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
        def settle() -> None:
            os.sched_setaffinity(0, cores)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)

        # No Ctrl-C between the start of a process and its entry in the list.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        try:
            process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                [str(word) for word in argv],
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=settle,
                **settings,
            )
            self._running.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
        return process

    def end(self, *processes: subprocess.Popen[bytes]) -> None:
        """End them and all that they started, at once: nothing here has anything to save."""
        for process in processes:
            for pid in _descendants(process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # The group may outlive its leader.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in processes:
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


def _descendants(pid: int) -> list[int]:
    """Give those that may have left the process group, too."""
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
