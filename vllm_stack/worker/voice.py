"""What a wrapper says: lines in its worker's log, which is its standard output."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Voice:
    """Speaks for one worker."""

    name: str

    def say(self, text: str) -> str | None:
        """Write one line and give it as it was written; None when nobody listens any more."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        line = f"{stamp} vllm-stack {self.name}: {text}"
        try:
            os.write(sys.stdout.fileno(), f"{line}\n".encode())
        except OSError:
            # supervisord was killed and its end of the pipe is gone: the work goes on unheard.
            return None
        return line

    @contextlib.contextmanager
    def noting(self, what: str) -> Iterator[None]:
        """Say what a full or broken disk prevented, and go on: the tree matters more than the records."""
        try:
            yield
        except OSError as error:
            self.say(f"{what}: {error}")
