"""The thread that looks at a running server: when it becomes ready, and when it has to be ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from vllm_stack.leftovers.shared_memory import SharedMemory
from vllm_stack.worker.liveness import Limits, Liveness, Sight
from vllm_stack.worker.probe import Probe, engine_steps

# Seconds between two looks at a server that is starting; one that serves is looked at this often
# within its patience, but not more often than `_OFTEN` and not more seldom than `_SELDOM`.
_STARTING = 0.5
_LOOKS = 8
_OFTEN, _SELDOM = 0.25, 5.0
# Seconds between two notes of what is in /dev/shm. Nearly all of it is made during the start.
_NOTE_STARTING = 5.0


class Watchdog(threading.Thread):
    """Looks at one server until it has to be ended, or `stop` is called.

    `verdict` says why it must be ended. It is there before the evidence is taken; when the thread
    has ended, that is done, and the server may be killed.
    """

    def __init__(
        self,
        probe: Probe,
        limits: Limits,
        memory: SharedMemory,
        note_every: float,
        take_evidence: Callable[[str, bytes], None],
    ) -> None:
        super().__init__(daemon=True)
        self.verdict: str | None = None
        self._metrics = b""
        self._probe = probe
        self._limits = limits
        self._memory = memory
        self._note_every = note_every
        self._take_evidence = take_evidence
        self._liveness = Liveness(limits, time.monotonic())
        self._over = threading.Event()
        self._next_note = 0.0

    @property
    def ready(self) -> bool:
        """The server has answered once that it is well."""
        return self._liveness.ready

    def stop(self) -> None:
        """Look no more; a question that is on its way is not waited for."""
        self._over.set()

    def run(self) -> None:
        while not self._over.wait(self._interval()):
            was_ready = self.ready
            verdict = self._liveness.take(self._look())
            self._note_memory(at_once=self.ready and not was_ready)
            if verdict is not None:
                self.verdict = verdict
                self._take_evidence(verdict, self._metrics)
                return

    def _note_memory(self, at_once: bool) -> None:
        """Note what the tree has in /dev/shm, now and then: a big process has long maps."""
        now = time.monotonic()
        if at_once or now >= self._next_note:
            self._next_note = now + (self._note_every if self.ready else _NOTE_STARTING)
            note_memory(self._memory)

    def _interval(self) -> float:
        if not self.ready:
            return _STARTING
        if self._limits.wedge <= 0:
            return _SELDOM
        return min(_SELDOM, max(_OFTEN, self._limits.wedge / _LOOKS))

    def _look(self) -> Sight:
        trouble = self._probe.health()
        if trouble is not None or self._limits.wedge <= 0 or not (in_flight := self._probe.in_flight()):
            return Sight(time.monotonic(), trouble)
        self._metrics = self._probe.metrics()
        return Sight(time.monotonic(), None, in_flight, engine_steps(self._metrics), sum(_cpu_seconds()))


def note_memory(memory: SharedMemory) -> None:
    """Note what the tree has in /dev/shm now."""
    with contextlib.suppress(OSError):  # a full disk: what is stale will stay
        memory.note(process.pid for process in tree_processes())


def tree_processes() -> list[psutil.Process]:
    """Give all processes below this one: orphans among them too, because a wrapper is a subreaper."""
    return psutil.Process().children(recursive=True)


def _cpu_seconds() -> Iterator[float]:
    """Give the CPU seconds of every process of the tree, of those it has collected, and its queueing.

    On a machine that has too much to do a process that computes gets little of a core: what it
    waited for one counts as well.
    """
    for process in tree_processes():
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            times = process.cpu_times()
            yield times.user + times.system + times.children_user + times.children_system
            yield sum(_queued(task) for task in Path(f"/proc/{process.pid}/task").iterdir())


def _queued(task: Path) -> float:
    """Give how long a thread was runnable without a core (seconds; the kernel's sched-stats.rst)."""
    return int((task / "schedstat").read_text("ascii").split()[1]) / 1e9
