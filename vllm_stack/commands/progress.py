"""What a person sees of a stack that comes up, runs and stops: every change, and what takes its time."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

from vllm_stack.commands.stack import Stack
from vllm_stack.commands.watch_workers import (
    SPEAK_EVERY,
    Sight,
    ask_proxy,
    failed,
    failure_of,
    is_up,
    last_word,
    log_tail,
    look_at,
)
from vllm_stack.leftovers.processes import Identity
from vllm_stack.worker.failure import Failure

# An answer that takes longer (seconds) is as good as none: Ctrl-C waits for it.
_PATIENCE = 1.0


class Progress:
    """Tells one run of a stack, line by line, to `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._begun = time.monotonic()
        self._spoken = 0.0
        self._said: dict[str, str] = {}
        self._failures: dict[str, Failure | None] = {}
        self._served = False
        self._running: set[str] = set()

    def show_serving(self, stack: Stack) -> None:
        """Say what changed since the last call; what is not ready is said again every now and then."""
        states = ask_proxy(stack, _PATIENCE)
        for name in stack.worker_names:
            self._show_failure(stack, name)
        due = self._elapsed() - self._spoken >= SPEAK_EVERY
        # Before the proxy answers, the last lines of the logs may be those of an earlier run.
        if states or due:
            for sight in self._sights(stack, states):
                self._show(sight, due)
        if due:
            self._spoken = self._elapsed()
        if not self._served and is_up(states, stack):
            self._served = True
            serving = f"Joined {stack.joins}" if stack.joins else f"Serving at {stack.door.url}"
            self._say(f"{serving}  Ctrl-C stops it")

    def show_stopping(self, stack: Stack, programs: list[psutil.Process]) -> None:
        """Say which program has ended since the last call, and now and then which are still there."""
        pids = {process.pid for process in programs}
        running = {name for name in stack.program_names if _leader(stack, name) in pids}
        for name in sorted(self._running - running):
            self._say(Sight(name, "stopped").line(self._elapsed()))
        self._running = running
        if running and self._elapsed() - self._spoken >= SPEAK_EVERY:
            self._spoken = self._elapsed()
            for name in sorted(running):
                self._say(Sight(name, "stopping", last_word(stack, name)).line(self._elapsed()))

    def _sights(self, stack: Stack, states: dict[str, str]) -> list[Sight]:
        names = stack.server_names
        proxy = []
        if states:
            self._said["proxy"] = "ready"
        else:
            # What was ready is so until the proxy says otherwise.
            names = tuple(name for name in names if self._said.get(name) != "ready")
            word = "not answering" if "proxy" in self._said else "starting"
            proxy = [Sight("proxy", word, last_word(stack, "proxy"))]
        return [*proxy, *(look_at(states, stack, name) for name in names)]

    def _show(self, sight: Sight, due: bool) -> None:
        if self._said.get(sight.name) != sight.state or (due and sight.state != "ready"):
            self._said[sight.name] = sight.state
            self._say(sight.line(self._elapsed()))

    def _show_failure(self, stack: Stack, name: str) -> None:
        """Say that a worker failed, also when it is back already."""
        failure = failure_of(stack, name)
        known = self._failures.setdefault(name, failure)
        if failure is None or failure == known:
            return
        self._failures[name] = failure
        for line in log_tail(stack, name):
            self._say(line)
        sight = failed(failure, name)
        self._said[name] = sight.state
        self._say(sight.line(self._elapsed()))

    def _elapsed(self) -> float:
        return time.monotonic() - self._begun


def _leader(stack: Stack, name: str) -> int | None:
    """Give the process that supervisord started as this program."""
    group = Identity.of(stack.layout, name).last_group()
    return group[0] if group else None
