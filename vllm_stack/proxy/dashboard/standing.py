"""How a worker stands, in one word: what the proxy sees of it, and what its wrapper says it does."""

from __future__ import annotations

from vllm_stack.records.phase import Phase, PhaseNote

# Phases of the wrapper in which nothing serves, whatever the proxy saw last.
_OUT = frozenset({Phase.WAITING, Phase.QUEUED, Phase.BLOCKED, Phase.WEDGED, Phase.STOPPING})
# What the proxy knows better than the wrapper.
_SEEN = frozenset({"ready", "drained", "stopping", "stopped"})


def judge(seen: str, note: PhaseNote | None, failed_at: float | None, in_flight: int = 0) -> str:
    """Give the word for a worker of this stack, one of those that `vllm-stack status` has.

    `seen` is the proxy's, `note` the wrapper's (None if no wrapper lives), `failed_at` when it last
    failed since a deliberate stop (Unix time).
    """
    if note is not None and note.phase in _OUT:
        return note.phase
    if seen in _SEEN:
        return _at_work(seen, in_flight)
    if note is None:
        # Between a failure and the next start nobody lives who could say so.
        return "stopped" if failed_at is None else "failed"
    if failed_at is not None and failed_at >= int(note.since):
        return "failed"
    return "loading" if note.phase is Phase.STARTING else "not answering"


def judge_upstream(seen: str, in_flight: int = 0) -> str:
    """Give the word for a server elsewhere, of which the proxy alone knows."""
    if seen in _SEEN:
        return _at_work(seen, in_flight)
    return "unknown" if seen == "unknown" else "not answering"


def _at_work(seen: str, in_flight: int) -> str:
    return "draining" if seen == "drained" and in_flight else seen
