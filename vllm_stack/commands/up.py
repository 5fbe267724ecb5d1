"""`vllm-stack up`: run the stack under our eyes, and end it as politely as the person asks.

supervisord takes one stop signal and no second one: whoever waits for a drain could only kill it.
So it runs in a session of its own, where no terminal reaches it, and this front-end takes the
signals: the first stops in order, the second has vLLM killed at once, the third kills everything.
Signals are blocked and taken one at a time, as in the worker's wrapper. If the front-end is killed
itself, the kernel has supervisord stop in order.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from enum import IntEnum
from pathlib import Path

import click

from vllm_stack.commands.progress import Progress
from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.commands.supervisord import Supervisord
from vllm_stack.commands.wait import wait_until_ready
from vllm_stack.commands.watch_workers import LOOK_EVERY
from vllm_stack.errors import NoStack, StackError
from vllm_stack.program import STOP_SIGNALS, adopt_orphans, take_signal

# What the next, harder way to end things is tried after, if the one before did not do (seconds).
_STOP_SLACK = 15.0
_HURRY = 8.0
_KILL = 10.0
# The same TERM may come twice: to a group, and once more from `make`, which passes it on.
_ONE_TERM = 1.0
_TICK = 0.2


class Stage(IntEnum):
    """How hard the stack is being ended."""

    SERVE = 0
    STOP = 1
    HURRY = 2
    KILL = 3


def run_detached(out: Path, timeout: float) -> None:
    """Start the stack in the background and return when it is ready.

    Raises `StackError` as `wait` does, and for a supervisord that does not start; what started runs on.
    """
    stack = _find_stopped(out)
    supervisord = Supervisord(stack.layout, tied=False)
    try:
        wait_until_ready(out, timeout, any_worker=False, check=supervisord.check)
    except KeyboardInterrupt:
        click.echo("No longer waiting. The stack runs on: `vllm-stack down` stops it", err=True)
        raise


def run_in_foreground(out: Path) -> int:
    """Run the stack until it is told to stop; gives the exit code. The caller has blocked the signals.

    Raises `StackError` when supervisord does not start or ends by itself, or a process outlives its end.
    """
    stack = _find_stopped(out)
    heeded = {signum for signum in STOP_SIGNALS | {signal.SIGHUP} if _is_heeded(signum)}
    if (signum := take_signal(0)) in heeded:
        return _exit_code(signum)
    adopt_orphans()
    return FrontEnd(out, stack, frozenset(heeded)).run()


def _find_stopped(out: Path) -> Stack:
    stack = find_stack(out)
    if stack.supervisord_runs():
        raise StackError(f"The stack in {stack.layout.out} runs already: `vllm-stack down` stops it")
    return stack


def _is_heeded(signum: signal.Signals) -> bool:
    """Tell whether a signal is for us; who started us may have said that it is not (nohup)."""
    return signal.getsignal(signum) is not signal.SIG_IGN


def _exit_code(signum: int) -> int:
    if signum == signal.SIGTERM:
        return 0
    return 128 + (signal.SIGHUP if signum == signal.SIGHUP else signal.SIGINT)


class FrontEnd:
    """One run of a stack, from its start to the last look for what is left of it."""

    def __init__(self, out: Path, stack: Stack, heeded: frozenset[int]) -> None:
        self._out = out
        self._known = stack
        self._heeded = heeded
        self._stage = Stage.SERVE
        self._deadline = math.inf
        self._last_signal = -math.inf
        self._told: int | None = None
        self._fault: str | None = None
        _say(f"Starting the stack in {stack.layout.out}. Its logs are in {stack.layout.logs}")
        self._supervisord = Supervisord(stack.layout, tied=True)
        self._progress = Progress(_say)

    def run(self) -> int:
        """Watch until supervisord and all that descends from it have ended; give the exit code."""
        look_at = time.monotonic() + LOOK_EVERY
        while not self._is_over():
            signum = take_signal(LOOK_EVERY if self._stage is Stage.SERVE else _TICK)
            if signum is not None and signum in self._heeded:
                self._heed(signum)
            if self._supervisord.reap() is not None and self._stage is Stage.SERVE:
                self._note_end()
            if time.monotonic() >= self._deadline:
                if self._stage is Stage.KILL:
                    break
                self._go_to(Stage(self._stage + 1))
            self._press()
            if time.monotonic() >= look_at and not self._is_over():
                self._look()
                look_at = time.monotonic() + LOOK_EVERY
        return self._finish()

    def _is_over(self) -> bool:
        return self._supervisord.returncode is not None and not self._supervisord.descendants()

    def _heed(self, signum: int) -> None:
        """Go one step further; a terminal that closes, or one TERM that came twice, is one step."""
        since, self._last_signal = time.monotonic() - self._last_signal, time.monotonic()
        if self._told is None:
            self._told = signum
        if self._stage is Stage.SERVE:
            self._go_to(Stage.STOP)
        elif signum == signal.SIGHUP or (signum == signal.SIGTERM and since < _ONE_TERM):
            return
        elif self._stage is not Stage.KILL:
            self._go_to(Stage(self._stage + 1))

    def _go_to(self, stage: Stage) -> None:
        self._stage = stage
        stack = self._stack()
        if stage is Stage.STOP:
            again = "Ctrl-C again ends everything now"
            _say(f"Stopping: open answers may finish (up to {stack.drain_timeout:.0f} s); {again}")
            self._supervisord.stop()
            patience = stack.stop_seconds + _STOP_SLACK
        elif stage is Stage.HURRY:
            _say("Ending everything now: open answers are cut, vLLM is killed")
            patience = _HURRY
        else:
            _say("Killing every process that is left")
            patience = _KILL
        self._deadline = time.monotonic() + patience

    def _press(self) -> None:
        """Tell also what was only just started: supervisord may have been about to."""
        if self._stage is Stage.HURRY:
            self._supervisord.hurry()
        elif self._stage is Stage.KILL:
            self._supervisord.kill()

    def _note_end(self) -> None:
        """supervisord has ended and we had not asked it to; what it ran is told so by the kernel."""
        if self._supervisord.returncode == 0:
            _say("supervisord was stopped from elsewhere")
            self._told = signal.SIGTERM
        else:
            self._fault = self._supervisord.epitaph()
        self._stage = Stage.STOP
        seconds = self._stack().stop_seconds
        self._deadline = time.monotonic() + seconds
        if self._supervisord.descendants():
            _say(f"supervisord has ended: what it ran stops now (up to {seconds} s); Ctrl-C ends it at once")

    def _look(self) -> None:
        if self._stage is Stage.SERVE:
            self._progress.show_serving(self._stack())
        else:
            self._progress.show_stopping(self._stack(), self._supervisord.programs())

    def _finish(self) -> int:
        """Sweep what may have escaped, say whether anything had, and give the exit code."""
        stack = self._stack()
        # Where another supervisord was first, its programs have our names and are not ours.
        if not stack.supervisord_runs():
            left = _sweep(stack)
            if left or self._fault is None:
                _say(f"Stopped. {'What was left was killed' if left else 'No process of the stack is left'}.")
        if self._fault is not None:
            raise StackError(self._fault)
        assert self._told is not None  # noqa: S101 - the loop ends after a signal or a fault
        return _exit_code(self._told)

    def _stack(self) -> Stack:
        """Read the stack anew: it is another one when its proxy has started, or after a reload."""
        # When somebody has removed its directory, what we know of it must do.
        with contextlib.suppress(NoStack):
            self._known = find_stack(self._out)
        return self._known


def _sweep(stack: Stack) -> bool:
    """Kill what may have escaped and tell of it; False if there was nothing. Raises `StackError`."""
    left: list[str] = []

    def tell(line: str) -> None:
        left.append(line)
        _say(f"  {line}")

    stack.sweep(tell)
    return bool(left)


def _say(text: str) -> None:
    """Write a line to the screen, if it takes it.

    One that is gone (a closed terminal, a reader that left) or held (Ctrl-S) must not hold up a stop.
    """
    screen = sys.stdout.fileno()
    try:
        if select.select([], [screen], [], 0.05)[1]:
            os.write(screen, f"{text}\n".encode(errors="replace"))
    except OSError:
        return
