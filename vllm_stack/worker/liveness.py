"""Whether a server lives, judged by its progress; nothing here reads a clock or a socket.

A server that answers `/health` is not yet alive: when its engine hangs it goes on saying 200. What
tells is progress. While requests are in flight the engine makes steps; when it makes none for the
patience of `Limits.wedge`, and none of its processes computes either, it is wedged. A long prefill
or a compilation makes no step for minutes, but it computes: such a server gets `BUSY_PATIENCE`
times as long, because a collective operation that hangs on a GPU spins, too.
"""

from __future__ import annotations

from dataclasses import dataclass

# Cores in use, on average between two looks, from which on a server counts as computing.
BUSY_CORES = 0.25
BUSY_PATIENCE = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience in seconds; 0 switches a judgement off."""

    start: float
    wedge: float


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen at one moment.

    `at` is on a monotonic clock (seconds); `trouble` is what `/health` has against it, None if
    nothing; `steps` are those of its engines so far, None if it does not tell; `cpu` are the CPU
    seconds its processes have used.
    """

    at: float
    trouble: str | None
    in_flight: int = 0
    steps: float | None = None
    cpu: float = 0.0


class Liveness:
    """Takes sight after sight of one server and says when it has to be ended."""

    def __init__(self, limits: Limits, started: float) -> None:
        self.ready = False
        self._limits = limits
        self._started = started
        self._well = started
        self._last: Sight | None = None
        self._steps: float | None = None
        # Seconds with requests in flight: without a step, and without computing either.
        self._stalled = self._quiet = 0.0
        self._idle = 0.0  # seconds without a request

    def take(self, sight: Sight) -> str | None:
        """Give the reason why this server has to be ended, None as long as there is none."""
        if sight.trouble is None:
            self.ready = True
            self._well = sight.at
        verdict = self._judge_progress(sight) if self.ready else self._judge_start(sight)
        self._last = sight
        return verdict

    def _judge_start(self, sight: Sight) -> str | None:
        waited = sight.at - self._started
        if not 0 < self._limits.start <= waited:
            return None
        return f"it was not ready {waited:.0f} s after its start (--start-timeout {self._limits.start:g})"

    def _judge_progress(self, sight: Sight) -> str | None:
        patience = self._limits.wedge
        if patience <= 0:
            return None
        ill = sight.at - self._well
        if ill >= patience:
            return f"its /health {sight.trouble} for {ill:.0f} s, after it had been ready"
        if self._last is not None:
            self._account(self._last, sight)
        if self._quiet < patience and self._stalled < BUSY_PATIENCE * patience:
            return None
        doing = "its processes computed nothing" if self._quiet >= patience else "although it computes"
        return (
            f"its engine made no step in {self._stalled:.0f} s with requests in flight, {doing} "
            f"(--wedge-timeout {patience:g})"
        )

    def _account(self, last: Sight, sight: Sight) -> None:
        """Book the time since the last sight.

        Only a step, or a long time without any request, clears the account: clients that lose their
        patience before we do, and leave, are no sign of life.
        """
        passed = sight.at - last.at
        stepped = sight.steps != self._steps
        if not sight.in_flight:
            self._idle += passed
        else:
            self._idle, self._steps = 0.0, sight.steps
        if self._idle > self._limits.wedge or (sight.in_flight and (stepped or sight.steps is None)):
            self._stalled = self._quiet = 0.0
        elif sight.in_flight and last.in_flight:
            self._stalled += passed
            busy = sight.cpu - last.cpu >= BUSY_CORES * passed
            self._quiet = 0.0 if busy else self._quiet + passed
