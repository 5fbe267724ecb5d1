"""A terminal with one program in its foreground: what is typed there acts as it does for a person."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.support.polling import until
from tests.support.processes import ProcessLedger

CTRL_C = "\x03"


class Terminal:
    """A pseudo-terminal and the program that leads its session, which `ledger` answers for."""

    def __init__(
        self, ledger: ProcessLedger, argv: Sequence[str | Path], env: Mapping[str, str], cwd: Path
    ) -> None:
        self._master, slave = pty.openpty()
        # setsid makes the terminal the controlling one, so that Ctrl-C becomes a signal.
        words = ["/usr/bin/setsid", "--ctty", *map(str, argv)]
        self.process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env=env, cwd=cwd)
        os.close(slave)
        ledger.adopt(self.process)
        self._shown = b""
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        # Not `select`: it takes no descriptor above 1023.
        readable = select.poll()
        readable.register(self._master, select.POLLIN)
        # At the end of the program there is nothing more to read: EIO.
        with contextlib.suppress(OSError):
            while not self._closing.is_set():
                if readable.poll(50):
                    self._shown += os.read(self._master, 4096)

    @property
    def shown(self) -> str:
        """All that was written to the screen so far."""
        return self._shown.decode(errors="replace").replace("\r\n", "\n")

    def until_shown(self, text: str, timeout: float) -> None:
        def shown() -> bool:
            ended = self.process.poll() is not None
            if ended:
                self._reader.join(10)
            if ended and text not in self.shown:
                pytest.fail(f"it ended before {text!r} was shown: {self.shown}")
            return text in self.shown or self._unless()

        until(shown, timeout, f"{text!r} is shown")

    def _unless(self) -> bool:
        raise LookupError(self.shown)

    def until_blocked(self, signum: int, timeout: float = 20) -> None:
        """Wait until the program holds a signal back (proc(5): SigBlk)."""

        def blocked() -> bool:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            mask = next(line for line in status.splitlines() if line.startswith("SigBlk"))
            return bool(int(mask.split()[1], 16) >> (signum - 1) & 1)

        until(blocked, timeout, f"signal {signum} is blocked", every=0.002)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        """Close the terminal, as a window is closed or a connection lost."""
        self._closing.set()
        self._reader.join(10)
        os.close(self._master)

    def wait(self, timeout: float) -> int:
        """Give the program's exit code once it and what it wrote have come."""
        until(lambda: self.process.poll() is not None or self._unless(), timeout, "the program ended")
        self._reader.join(10)
        assert self.process.returncode is not None
        return self.process.returncode

    def supervisord(self) -> psutil.Process:
        """Give the one child of the program."""
        (child,) = psutil.Process(self.process.pid).children()
        return child
