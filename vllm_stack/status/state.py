"""What a worker is called: never ready unless it has just said so itself."""

from __future__ import annotations

import time
from enum import StrEnum

from vllm_stack.layout import RAY
from vllm_stack.records.drain_order import DrainOrder
from vllm_stack.records.phase import Phase, PhaseNote
from vllm_stack.status.progress import Progress, read_progress
from vllm_stack.status.sights import WorkerSight
from vllm_stack.worker.failure import Failure

# supervisord's words for a program that it is not to run.
_AT_REST = ("STOPPED", "EXITED")
# Those where something of it lives, or soon will.
_ALIVE = ("STARTING", "RUNNING")


class State(StrEnum):
    """The states of a worker; docs/operating.md says what to do about each."""

    READY = "ready"
    DRAINING = "draining"  # ordered out, and still at work
    DRAINED = "drained"
    LOADING = "loading"
    QUEUED = "queued"
    BLOCKED = "blocked"
    STARTING = "starting"  # its wrapper clears up behind an earlier life
    WAITING = "waiting"
    FAILED = "failed"  # it has just ended
    WEDGED = "wedged"
    NOT_ANSWERING = "not answering"
    STOPPING = "stopping"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


_OF_PHASE = {
    Phase.WAITING: State.WAITING,
    Phase.QUEUED: State.QUEUED,
    Phase.BLOCKED: State.BLOCKED,
    Phase.WEDGED: State.WEDGED,
    Phase.STOPPING: State.STOPPING,
}


def judge(name: str, seen: WorkerSight) -> tuple[State, str]:
    """Give a worker's state, and what more there is to say."""
    state, detail = _judge(name, seen)
    if seen.order is None:
        return state, detail or _disagreement(state, seen)
    # What it does is worth more than the order, unless all is well with it.
    if state is State.READY:
        state = State.DRAINING if seen.standing is not None and seen.standing.in_flight else State.DRAINED
    return state, _with(detail, seen.order)


def progress_of(name: str, state: State, seen: WorkerSight) -> Progress | None:
    """Tell how far a worker has come that loads."""
    return read_progress(seen.log, name) if state is State.LOADING else None


def _judge(name: str, seen: WorkerSight) -> tuple[State, str]:
    note, failure = seen.note, seen.failure
    if note is None:
        return _without_wrapper(seen)
    if seen.program == "STOPPING":
        return State.STOPPING, ""
    if note.phase in _OF_PHASE:
        return _OF_PHASE[note.phase], note.detail
    if seen.trouble is None:
        return State.READY, note.detail
    if failure is not None and _ended_since(note, failure):
        return State.FAILED, _of_failure(failure)
    if note.phase is Phase.READY:
        still = "; the proxy still sends to it" if seen.standing is not None and seen.standing.open_in else ""
        return State.NOT_ANSWERING, f"it was ready, but now {seen.trouble}{still}"
    progress = read_progress(seen.log, name)
    if name == RAY:
        return State.LOADING, "" if progress is None else str(progress)
    return State.LOADING, "" if progress is None else f"it {progress}"


def _without_wrapper(seen: WorkerSight) -> tuple[State, str]:
    """No wrapper lives: whatever supervisord says, nobody serves."""
    word = seen.program
    if word == "STOPPING":
        return State.STOPPING, ""
    if word == "FATAL":
        return (
            State.FAILED,
            "supervisord has given it up: its log says why; `supervisorctl start` tries again",
        )
    if seen.failure is not None and word and word != "STOPPED":
        return State.FAILED, _of_failure(seen.failure)
    if word == "BACKOFF":
        return State.FAILED, "its wrapper does not start: its log says why; supervisord tries again"
    if word in _AT_REST:
        return State.STOPPED, ""
    return (State.STARTING if word in _ALIVE else State.UNKNOWN), ""


def _ended_since(note: PhaseNote, failure: Failure) -> bool:
    """Whether it ended after the note: its wrapper, which lives, is clearing up."""
    age = failure.age()
    return age is not None and age < time.time() - note.since


def _of_failure(failure: Failure) -> str:
    return failure.story if failure.is_settled else f"{failure.what} {failure.how}; why is being looked into"


def _disagreement(state: State, seen: WorkerSight) -> str:
    """Say where the proxy does not send to a worker that is well."""
    standing = seen.standing
    if state is not State.READY or standing is None or standing.open_in:
        return ""
    return f"it says it is well, but the proxy does not send to it ({standing.state})"


def _with(detail: str, order: DrainOrder) -> str:
    return f"{detail}; {order.story}" if detail else order.story
