"""From what was seen of a drill to its figures and a verdict; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from vllm_stack.drill.answer import Ending, Outcome
from vllm_stack.drill.trees import Recorded

# Seconds: a process of the proxy asks a worker this often how it is (`proxy.health`), and a little more.
# Until then it may not know what another one has seen.
SPREAD = 3.0
_QUEUE_FULL = 429  # the operator's own limit, which fewer workers reach sooner


class Verdict(Enum):
    """What became of a drill."""

    PASSED = "passed"
    FAILED = "failed"
    # It cannot be held on this stack.
    SKIPPED = "skipped"
    # It was to be held, and could not.
    NOT_RUN = "not run"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of one drill; times are seconds on CLOCK_MONOTONIC.

    `sampled` is a moment just before the fault (`struck`), and `exposed` what was in flight on the
    worker then: of the streams that had begun to flow by `sampled`, no more than that can have been on
    it. Where the connections themselves are known, `ports` are our ends of them. `others` are the
    servers that were ready beside the worker, `out` when the worker was first seen out of the choice,
    `back` when it was ready again.
    """

    on_proxy: bool
    outcomes: Sequence[Outcome]
    sampled: float
    struck: float
    exposed: int
    ports: frozenset[int] | None
    others: int
    out: float | None
    back: float | None
    left_over: tuple[Recorded, ...] = ()
    # Why the watch was given up, in a sentence.
    gave_up: str | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """What a drill showed; times are seconds from the fault."""

    sent: int
    whole: int
    # Not answered with 200, or broken without an error event; `broken` are the streams among them.
    failed: int
    broken: int
    cut: int
    cut_silently: int
    unfinished: int
    routed_around: float | None
    ready_again: float | None
    left_over: tuple[Recorded, ...]
    # What the lost requests were told, and how many of them.
    losses: tuple[str, ...]
    one_worker: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """One drill's line of the report."""

    drill: str
    verdict: Verdict
    reasons: tuple[str, ...] = ()
    figures: Figures | None = None


def judge(drill: str, evidence: Evidence) -> Result:
    """Judge a drill that was held."""
    reasons = tuple(_reasons(evidence))
    return Result(drill, Verdict.FAILED if reasons else Verdict.PASSED, reasons, _figures(evidence))


def _figures(evidence: Evidence) -> Figures:
    endings = Counter(outcome.ending for outcome in evidence.outcomes)
    routed, back = routed_around(evidence), evidence.back
    return Figures(
        sent=len(evidence.outcomes),
        whole=endings[Ending.WHOLE],
        failed=endings[Ending.FAILED] + endings[Ending.BROKEN],
        broken=endings[Ending.BROKEN],
        cut=endings[Ending.CUT],
        cut_silently=endings[Ending.SILENT],
        unfinished=endings[Ending.UNFINISHED],
        routed_around=None if routed is None else routed - evidence.struck,
        ready_again=None if back is None else back - evidence.struck,
        left_over=evidence.left_over,
        losses=_losses(evidence.outcomes),
        one_worker=not evidence.on_proxy and evidence.others == 0,
    )


def routed_around(evidence: Evidence) -> float | None:
    """Give when requests no longer went to what was struck; None if they had nowhere else to go.

    That is when the proxy showed the worker out of the choice, if a request that began then was
    answered. Where it was never seen out, or the proxy itself was struck, it is the end of the first
    request that began after the fault and was answered.
    """
    if evidence.on_proxy or (evidence.out is None and evidence.others):
        answered = _answered_from(evidence.outcomes, evidence.struck)
        return min((outcome.ended for outcome in answered), default=None)
    if evidence.out is None or not evidence.others:
        return None
    return evidence.out if any(_answered_from(evidence.outcomes, evidence.out)) else None


def _answered_from(outcomes: Iterable[Outcome], begin: float) -> list[Outcome]:
    return [o for o in outcomes if o.begun >= begin and o.ending is Ending.WHOLE]


def _reasons(evidence: Evidence) -> Iterable[str]:
    """Say all that must not be."""
    if evidence.gave_up is not None:
        yield evidence.gave_up
    if evidence.left_over:
        shown = "; ".join(f"{recorded.pid} {recorded.what}" for recorded in evidence.left_over)
        yield f"{_count(len(evidence.left_over), 'process', 'processes')} left over: {shown}"
    silent = [o for o in evidence.outcomes if o.ending is Ending.SILENT]
    if silent:
        yield f"{_count(len(silent), 'answer was', 'answers were')} cut silently: {silent[0].detail}"
    broken = [o for o in evidence.outcomes if o.ending is Ending.BROKEN]
    if broken and not evidence.on_proxy:
        yield f"{_count(len(broken), 'stream', 'streams')} broke without an error event: {broken[0].detail}"
    astray = _astray(evidence)
    if astray:
        what = "process of the proxy" if evidence.on_proxy else "worker"
        yield f"{_count(astray, 'stream', 'streams')} got lost that cannot have been on the {what} struck"
    late = _late(evidence)
    if late:
        told = "; ".join(_losses(late))
        yield f"{_count(len(late), 'request', 'requests')} began after that was over and failed: {told}"
    if evidence.back is not None and not _answered_from(evidence.outcomes, evidence.back):
        yield "No request that began after the return was answered"


def _astray(evidence: Evidence) -> int:
    """Count the streams that were lost although they cannot have been on what was struck.

    Only those that flowed before the fault count: what began later may have gone anywhere.
    """
    lost = [
        outcome
        for outcome in evidence.outcomes
        if outcome.streamed
        and outcome.is_lost
        and outcome.settled is not None
        and outcome.settled <= evidence.sampled
        and outcome.ended >= evidence.struck
    ]
    if evidence.ports is not None:
        return sum(outcome.port not in evidence.ports for outcome in lost)
    return max(0, len(lost) - evidence.exposed)


def _late(evidence: Evidence) -> list[Outcome]:
    """Give the requests that were lost although they began when the stack had got over the fault."""
    over = routed_around(evidence) or evidence.back
    if over is None:
        return []
    return [o for o in evidence.outcomes if o.is_lost and o.begun > over + SPREAD and o.status != _QUEUE_FULL]


def _losses(outcomes: Iterable[Outcome]) -> tuple[str, ...]:
    told = Counter((o.ending, o.detail) for o in outcomes if o.is_lost)
    return tuple(f"{count} x {ending.value}: {detail}" for (ending, detail), count in told.most_common(5))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
