"""Everything that comes before a server is started: an empty box, and the waits.

    sweep -> clear files -> the delay after a failure -> the GPUs' memory -> this worker's turn

A stop ends it at any point; nothing has been started then.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from vllm_stack.address import UnixAddress
from vllm_stack.errors import DriverTrouble
from vllm_stack.leftovers.processes import sweep
from vllm_stack.program import STOP_SIGNALS, take_signal
from vllm_stack.records.phase import Phase, write_phase
from vllm_stack.vllm_arguments import needed_share
from vllm_stack.worker.autopsy import Autopsy
from vllm_stack.worker.failure import last_failure, restart_pause
from vllm_stack.worker.gpu_memory import describe, occupied, read_slice
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.turn import Turn
from vllm_stack.worker.voice import Voice

# Seconds that supervisord waits before it starts a program again whose start it books as failed:
# with a short delay, that much may have passed without the start having been booked as good.
BACKOFF = 3.0
GPU_TIMEOUT = 5.0  # for the answer of the driver: nothing else is heeded meanwhile
_TICK = 0.5
_SPEAK_EVERY = 15.0


class Preparation:
    """Makes ready for one start; `Spec` says for whose."""

    def __init__(self, spec: Spec, voice: Voice, autopsy: Autopsy, turn: Turn) -> None:
        self._spec = spec
        self._voice = voice
        self._autopsy = autopsy
        self._turn = turn
        self._born = time.monotonic()

    def finish(self) -> bool:
        """Do all of it; False when a stop came."""
        self._clear_away()
        self._note_a_killed_wrapper()
        return not (
            self._wait_out_last_failure()
            or self._wait_for_memory()
            or self._wait_for_turn()
            or _stop_comes_within(0)
        )

    def _clear_away(self) -> None:
        """End what earlier lives left behind, and remove their files."""
        spec, noting = self._spec, self._voice.noting
        sweep(spec.identity, self._voice.say)
        spec.memory.remove_stale(self._voice.say)
        with noting("the working directory could not be emptied"):
            empty(spec.box)
            (spec.box / "tmp").mkdir(mode=0o700)
        remove_socket(spec, self._voice)

    def _note_a_killed_wrapper(self) -> None:
        """Record the failure that a wrapper could not record itself: its server died with it.

        A wrapper that was told to stop is killed too, by supervisord, when it takes too long.
        """
        began = self._spec.identity.cut_short()
        if began is not None and not self._spec.stopping.exists():
            self._autopsy.of_killed_wrapper(time.time() - began)
            with self._voice.noting("the record of the last life could not be removed"):
                self._spec.identity.forget_life()

    def _wait_out_last_failure(self) -> bool:
        """Wait until the delay after the last failure is over; True when a stop ended the wait.

        A wait lasts at least as long as supervisord's startsecs (`Spec.settle`): then supervisord
        books the start as good and resets its count of failed ones, so that a worker is never
        given up (FATAL).
        """
        spec = self._spec
        failure = last_failure(spec.failure)
        age = failure.age() if failure else None
        if failure is None or age is None or age < 0:
            return False
        delay = restart_pause(failure, spec.restart_delay, spec.restart_delay_max)
        if age >= delay + BACKOFF:
            return False
        pause = max(delay - age, spec.settle - (time.monotonic() - self._born))
        again = f", the {_ordinal(failure.in_row)} failure in a row" if failure.in_row > 1 else ""
        ended = f"{failure.what} {failure.how} {age:.0f} s ago{again}"
        self._voice.say(f"{ended}; starting it again in {pause:.0f} s")
        self._phase(Phase.WAITING, failure.story, time.time() + pause)
        return _stop_comes_within(pause)

    def _wait_for_memory(self) -> bool:
        """Wait until the memory of this worker's GPUs is free, for a while; True when a stop ended it.

        AMD's driver is not asked: a start that comes too early fails, and is tried again after the delay.
        """
        if not self._spec.gpus or self._spec.device != "cuda":
            return False
        share = needed_share(self._spec.argv)
        return self._wait_while(
            lambda: self._busy(share), Phase.BLOCKED, time.monotonic() + self._spec.gpu_patience
        )

    def _busy(self, share: float) -> str | None:
        """Say who holds the memory this server needs; None when it is free, or when nobody can tell."""
        try:
            busy = occupied(read_slice(self._spec.gpus, GPU_TIMEOUT), share)
        except DriverTrouble as trouble:
            self._voice.say(f"the memory of the GPUs cannot be read: {trouble}")
            return None
        return "; ".join(describe(gpu, share) for gpu in busy) or None

    def _wait_for_turn(self) -> bool:
        def reason() -> str | None:
            try:
                return self._turn.take()
            except OSError as error:
                self._voice.say(f"the order of the starts cannot be kept: {error}")
                return None

        return self._wait_while(reason, Phase.QUEUED, None)

    def _wait_while(self, reason: Callable[[], str | None], phase: Phase, deadline: float | None) -> bool:
        """Wait as long as there is a reason, and say which; True when a stop ended the wait."""
        told, spoken = "", 0.0
        while (why := reason()) is not None:
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                self._voice.say("starting all the same")
                return False
            if now - spoken >= _SPEAK_EVERY:
                spoken = now
                self._voice.say(f"waiting: {why}")
            if why != told:
                told = why
                self._phase(phase, why)
            if _stop_comes_within(_TICK):
                return True
        return False

    def _phase(self, phase: Phase, detail: str, until: float | None = None) -> None:
        with self._voice.noting("what this worker does could not be noted"):
            write_phase(self._spec.phase, phase, detail, until)


def empty(box: Path) -> None:
    """Remove everything in a private directory; raises `OSError`."""
    for path in box.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_socket(spec: Spec, voice: Voice) -> None:
    """vLLM leaves its unix socket behind, however it ends, and cannot bind to a path that exists."""
    if isinstance(spec.address, UnixAddress):
        with voice.noting("the socket of the server that ended could not be removed"):
            Path(spec.address.path).unlink(missing_ok=True)


def _stop_comes_within(seconds: float) -> bool:
    """Wait for a stop; with 0 only look whether one has come."""
    deadline = time.monotonic() + seconds
    while True:
        signum = take_signal(deadline - time.monotonic())
        if signum in STOP_SIGNALS:
            return True
        if signum is None and time.monotonic() >= deadline:
            return False


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"
