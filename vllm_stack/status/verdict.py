"""How the stack is as a whole: an exit code, and one sentence."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_stack.status.picture import NOT_ANSWERING, Picture, Worker
from vllm_stack.status.state import State
from vllm_stack.status.words import amount

ALL_READY, DEGRADED, NOTHING_SERVES = 0, 1, 3
# The proxy's word for a server elsewhere that it sends to.
_READY = "ready"
# So many are named together: the rest is in the table.
_NAMED = 3


def exit_code(picture: Picture) -> int:
    """Say how the stack is: all workers are ready, some are not, or nothing serves.

    Servers elsewhere are not ours to be ready; but while one of them is, something serves.
    """
    ready = sum(worker.state is State.READY for worker in picture.workers)
    elsewhere = sum(upstream.state == _READY for upstream in picture.upstreams)
    if picture.proxy.state != "running" or not ready + elsewhere:
        return NOTHING_SERVES
    if picture.workers:
        return ALL_READY if ready == len(picture.workers) else DEGRADED
    return ALL_READY if elsewhere == len(picture.upstreams) else DEGRADED


def summary(picture: Picture) -> str:
    """Say it in words: what is ready, what is not and why, and what waits."""
    sentences = (_of_the_whole(picture), *_further(picture))
    return " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _of_the_whole(picture: Picture) -> str:
    if picture.supervisord != "running":
        what = "is shutting down" if picture.supervisord == "stopping" else "does not answer"
        return f"supervisord {what}: {_of_servers(picture)}"
    if picture.proxy.state != "running":
        verb = "does not answer" if picture.proxy.state == NOT_ANSWERING else f"is {picture.proxy.state}"
        return f"Nothing serves, because the proxy {verb}: {_of_servers(picture)}"
    if exit_code(picture) == NOTHING_SERVES:
        return f"Nothing serves: {_of_servers(picture)}"
    return _of_servers(picture)


def _of_servers(picture: Picture) -> str:
    """Count the ready ones, and name those that are not."""
    if not picture.workers:
        ready = sum(upstream.state == _READY for upstream in picture.upstreams)
        return _count(ready, len(picture.upstreams), "upstream")
    doing: dict[str, list[str]] = {}
    for worker in picture.workers:
        doing.setdefault(_doing(worker, picture.at), []).append(worker.place.name)
    at_work = doing.pop(State.READY, [])
    counted = _count(len(at_work), len(picture.workers), "worker")
    others = "; ".join(f"{what}: {_listed(names)}" for what, names in doing.items())
    return f"{counted} ({others})" if others else counted


def _count(ready: int, of: int, what: str) -> str:
    if of == 1:
        return f"the {what} is {'ready' if ready else 'not ready'}"
    if ready == of:
        return f"{'both' if of == 2 else f'all {of}'} {what}s are ready"
    return f"{ready or 'none'} of {of} {what}s {'is' if ready <= 1 else 'are'} ready"


def _doing(worker: Worker, at: float) -> str:
    """Say what it does, in its state's word, and how long or how much that still is."""
    if worker.until is not None:
        return f"starts again in {max(0.0, worker.until - at):.0f} s"
    if worker.progress is not None and worker.progress.percent is not None:
        return f"{worker.state}, {worker.progress.percent} %"
    if worker.state is State.DRAINING:
        return f"{worker.state}, {worker.in_flight} in flight"
    return worker.state


def _listed(names: list[str]) -> str:
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _further(picture: Picture) -> Iterator[str]:
    yield from _models_without(picture)
    if picture.proxy.waiting:
        waiting = picture.proxy.waiting
        yield f"{amount(waiting, 'request')} {'waits' if waiting == 1 else 'wait'} for a worker"
    if picture.roll is not None:
        yield "A roll is under way" if picture.roll.running else "A roll was broken off"


def _models_without(picture: Picture) -> Iterator[str]:
    """Name the models that nobody serves, where others are served."""
    serving: dict[str, bool] = {}
    for worker in picture.workers:
        serving[worker.place.model] = serving.get(worker.place.model, False) or worker.state is State.READY
    for upstream in picture.upstreams:
        serving[upstream.place.model] = serving.get(upstream.place.model, False) or upstream.state == _READY
    if any(serving.values()):
        yield from (f"Nobody serves {model}" for model, served in serving.items() if not served)
