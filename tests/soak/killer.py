"""Ends a random process of a running stack with SIGKILL, again and again."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator

import psutil

from tests.integration.conftest import Stack
from tests.soak.repeated import Repeated

MASTER = "gunicorn master"


class Killer(Repeated):
    """Kills every `every` seconds; of supervisord alone it lets be, because nobody would start that again."""

    def __init__(self, stack: Stack, every: float, chance: random.Random) -> None:
        super().__init__(every)
        self._stack = stack
        self._chance = chance
        self.kills: Counter[str] = Counter()
        # When a master was killed (seconds, monotonic): then nobody listens until supervisord has another.
        self.masters: list[float] = []

    def turn(self) -> None:
        if living := list(self._living()):
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
