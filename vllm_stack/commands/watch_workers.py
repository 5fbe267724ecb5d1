"""How the workers come up and go: what the verbs know of each, and the line they show of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from vllm_stack.commands.stack import Stack
from vllm_stack.commands.standing import ask_standings
from vllm_stack.layout import RAY, failure_record, phase_note
from vllm_stack.log_tail import last_lines
from vllm_stack.records.phase import Phase, read_phase
from vllm_stack.worker.failure import Failure, last_failure

# How often those that wait look, and how often they speak although nothing changed (seconds).
LOOK_EVERY = 1.0
SPEAK_EVERY = 10.0
# Lines of Ray's log in which one of ours is looked for, and how much of it is shown.
_SEARCHED = 400
_WIDE = 220
# What the proxy says of a worker that is out, where it says more than that nobody listens.
_TELLING = ("stopping", "stopped", "ill", "late")
# What the wrapper knows better than the proxy.
_TOLD_BY_WRAPPER = {
    Phase.QUEUED: "queued",
    Phase.BLOCKED: "blocked",
    Phase.WEDGED: "wedged",
    Phase.STOPPING: "stopping",
}


@dataclass(frozen=True, slots=True)
class Sight:
    """What can be told of one server now: its state in a word, and what it is doing."""

    name: str
    state: str
    doing: str = ""

    def line(self, elapsed: float) -> str:
        """Give the line for a screen, `elapsed` seconds after the verb began."""
        return f"{elapsed:4.0f} s  {self.name}  {self.state}  {self.doing}".rstrip()


def ask_proxy(stack: Stack, timeout: float = 5.0) -> dict[str, str]:
    """Ask the proxy how each server is, in a word; before it listens it says nothing of any.

    A box that has joined a Ray cluster has none: its wrapper knows.
    """
    if stack.joins is not None:
        notes = {name: read_phase(phase_note(stack.layout.state, name)) for name in stack.worker_names}
        return {
            name: "ready" if note.phase is Phase.READY else "loading"
            for name, note in notes.items()
            if note is not None
        }
    return {name: standing.state for name, standing in ask_standings(stack, timeout).items()}


def is_up(states: dict[str, str], stack: Stack, any_worker: bool = False) -> bool:
    """Tell whether all workers are ready (or one, with `any_worker`).

    Servers elsewhere are not ours to wait for: one of them is enough, and only where there are no
    workers, or with `any_worker`. Nor is one that was ordered out.
    """
    ready = ready_names(states, stack)
    if any_worker or not stack.worker_names:
        return bool(ready)
    return bool(ready) and all(states.get(name) in ("ready", "drained") for name in stack.worker_names)


def ready_names(states: dict[str, str], stack: Stack) -> list[str]:
    """Name the servers that are ready."""
    return [name for name in stack.server_names if states.get(name) == "ready"]


def look_at(states: dict[str, str], stack: Stack, name: str) -> Sight:
    """Put together what the proxy, the wrapper and the log say of a server."""
    told = states.get(name, "unknown")
    if told == "ready" or name in stack.upstream_names:
        return Sight(name, told)
    if told == "drained":
        return Sight(name, told, f"`vllm-stack readmit {name}` takes it back")
    note = read_phase(phase_note(stack.layout.state, name))
    if note is not None and note.phase is Phase.WAITING:
        return Sight(name, "waiting", f"starts again {_when(note.until)}: {note.detail}")
    if note is not None and note.phase in _TOLD_BY_WRAPPER:
        return Sight(name, _TOLD_BY_WRAPPER[note.phase], note.detail)
    # Until its next look the proxy goes by the notice of a stop that an earlier life left.
    begins = note is not None and note.phase is Phase.STARTING and told in ("stopping", "stopped")
    return Sight(name, told if told in _TELLING and not begins else "loading", last_word(stack, name))


def failed(failure: Failure, name: str) -> Sight:
    """Say how a worker failed."""
    return Sight(name, "failed", f"{failure.story}; it will be started again")


def failure_of(stack: Stack, name: str) -> Failure | None:
    """Give a worker's last failure if it had one, as soon as everything is known of it."""
    failure = last_failure(failure_record(stack.layout.state, name))
    return failure if failure is not None and failure.is_settled else None


def last_word(stack: Stack, name: str) -> str:
    """Give the last line of a program's log, as much as fits on a screen.

    Of Ray's, which says much, the last line that is ours.
    """
    lines = last_lines(stack.layout.logs / f"{name}.log", _SEARCHED if name == RAY else 1)
    if name == RAY:
        lines = [line for line in lines if f"vllm-stack {RAY}: " in line][-1:]
    return " ".join(lines)[: _WIDE if name == RAY else 100]


def log_tail(stack: Stack, name: str) -> list[str]:
    """Give the last lines of a program's log, each with its name."""
    return [f"  {name} | {line}" for line in last_lines(stack.layout.logs / f"{name}.log", 15)]


def _when(moment: float | None) -> str:
    """Say how far away a moment is (Unix time)."""
    left = 0.0 if moment is None else moment - time.time()
    return f"in {left:.0f} s" if left > 0 else "now"
