"""Ends a random process of a running stack with SIGKILL, again and again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import psutil

from tests.integration.conftest import Stack

MASTER = "gunicorn master"


class Killer:
    """Kills every `every` seconds; of supervisord alone it lets be, because nobody would start that again."""

    def __init__(self, stack: Stack, every: float, chance: random.Random) -> None:
        self._stack = stack
        self._every = every
        self._chance = chance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill_on)
        self.kills: Counter[str] = Counter()
        # When a master was killed (seconds, monotonic): then nobody listens until supervisord has another.
        self.masters: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _kill_on(self) -> None:
        while not self._over.wait(self._every):
            living = list(self._living())
            if living:
                role, pid = self._chance.choice(living)
                with contextlib.suppress(ProcessLookupError):
                    self._stack.kill(pid)
                    self.kills[role] += 1
                    if role == MASTER:
                        self.masters.append(time.monotonic())

    def _living(self) -> Iterator[tuple[str, int]]:
        """Give the processes there are, by what they are; a worker that is down has none."""
        for index in range(len(self._stack.names)):
            with contextlib.suppress(Exception):
                tree = self._stack.tree(index)
                yield from zip(
                    ("wrapper", "API server", "engine", "tensor-parallel worker"), tree.pids, strict=True
                )
        with contextlib.suppress(Exception):
            master = psutil.Process(self._stack.pid("proxy"))
            yield MASTER, master.pid
            yield from (("proxy process", child.pid) for child in master.children())
