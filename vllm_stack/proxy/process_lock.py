"""A lock between the processes of the proxy, one for each number; the kernel ends it with its process.

It lies in a file in memory that is made before the fork. Within a process greenlets need none: nothing
switches between them while it is held.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds. A process that was stopped with the lock in its hand must not stop the others: they go on
# without. One that only lost its processor for a moment gets it back within this.
_PATIENCE = 0.1


class ProcessLock:
    """One process's hold on all of the locks; made before the fork, used after it."""

    def __init__(self, name: str) -> None:
        self._file = os.memfd_create(name, os.MFD_CLOEXEC)
        self._patience = _PATIENCE

    @contextmanager
    def holding(self, number: int) -> Iterator[bool]:
        """Hold one of the locks, or go on without it if its holder does not move; gives which it is."""
        locked = self.try_for(number, self._patience)
        # After a stopped process no patience is left until a lock is free again: it costs us this once.
        self._patience = _PATIENCE if locked else 0.0
        try:
            yield locked
        finally:
            if locked:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def try_for(self, number: int, seconds: float) -> bool:
        """Try to take one of the locks for so long; tells whether we have it."""
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
                return True
            except OSError:
                if time.monotonic() >= end:
                    return False
                os.sched_yield()  # without a switch to another greenlet, as every sleep would be

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)
