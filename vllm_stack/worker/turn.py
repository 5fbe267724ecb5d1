"""Whose turn it is to start, so that N engines do not race for one cache or for the host's memory.

With `auto` the first worker of a model starts alone: it downloads the weights and fills the
compile caches, and the others follow when it is ready. Who that is, is decided by a lock that its
wrapper holds: if it dies, the kernel gives the lock to nobody, and the next worker takes it. Once
one was ready, a note says so, and from then on all start together. Models do not wait for each other:
locks and notes are kept for each engine. With a number of seconds, that long passes between the starts
of any two workers.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.program import boot_id
from vllm_stack.records.record import read_record, write_record
from vllm_stack.worker.failure import boot_clock

AUTO, NONE = "auto", "none"


@dataclass(frozen=True, slots=True)
class Stagger:
    """How the workers of one stack take turns; `mode` is auto, none, or a number of seconds.

    `engine` names what they run: the caches of another model, or of other options, are no help.
    """

    mode: str
    engine: str


class Turn:
    """One worker's turn. It is held until `give_back`, or until the process ends."""

    def __init__(self, stagger: Stagger, state: Path, name: str) -> None:
        self._stagger = stagger
        self._warm = state / f"warm.{stagger.engine}.json"
        self._lock = state / (f"turn.{stagger.engine}.lock" if stagger.mode == AUTO else "turn.lock")
        self._started = state / "turn.json"
        self._name = name
        self._held: int | None = None

    def take(self) -> str | None:
        """Give None if this worker may start now, otherwise the reason why it has to wait.

        Raises `OSError` when the notes cannot be kept; then there is no order.
        """
        if self._stagger.mode == NONE or (self._stagger.mode == AUTO and self._is_warm()):
            self.give_back()
            return None
        if not self._try_lock():
            return f"{self._holder()} starts first, alone: it fills the caches"
        if self._stagger.mode == AUTO:
            return None
        try:
            return self._after_the_last()
        finally:
            self.give_back()

    def was_ready(self) -> None:
        """Note that the caches are warm: this worker served. Raises `OSError`."""
        if self._stagger.mode == AUTO and not self._is_warm():
            write_record(self._warm, {"engine": self._stagger.engine})
        self.give_back()

    def give_back(self) -> None:
        """Let the next one start."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _is_warm(self) -> bool:
        return read_record(self._warm).get("engine") == self._stagger.engine

    def _after_the_last(self) -> str | None:
        """Keep the distance to the last start, whichever worker's it was, and note this one."""
        last = read_record(self._started)
        at = last.get("at")
        if last.get("boot") == boot_id() and isinstance(at, float) and last.get("name") != self._name:
            left = at + float(self._stagger.mode) - boot_clock()
            if left > 0:
                return f"{last.get('name')} has just started; this one follows in {left:.0f} s"
        write_record(self._started, {"boot": boot_id(), "at": boot_clock(), "name": self._name})
        return None

    def _try_lock(self) -> bool:
        if self._held is not None:
            return True
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, self._name.encode())
        self._held = descriptor
        return True

    def _holder(self) -> str:
        return self._lock.read_text("utf-8", "replace") or "another worker"
