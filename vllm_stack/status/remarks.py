"""What there is to say of a stack in words: what each server is at, and why it failed."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_stack.status.picture import Picture, Proxy, Roll, Worker
from vllm_stack.status.state import State
from vllm_stack.status.words import duration, milliseconds, rate
from vllm_stack.terminal_text import printable


def remarks(picture: Picture) -> Iterator[tuple[str, str]]:
    """Give, by server, every sentence; nothing in them moves a terminal's cursor."""
    for name, text in _remarks(picture):
        yield name, printable(text)


def _remarks(picture: Picture) -> Iterator[tuple[str, str]]:
    yield "proxy", _of_proxy(picture.proxy)
    if picture.proxy.reload_trouble:
        yield "proxy", f"the last reload changed nothing: {picture.proxy.reload_trouble}"
    for worker in picture.workers:
        yield from ((worker.place.name, text) for text in _of_worker(worker))
        for gpu in worker.gpus:
            if gpu.trouble is not None:
                yield worker.place.name, f"of GPU {gpu.token} nothing is known: {gpu.trouble}"
    if picture.roll is not None:
        yield "roll", _of_roll(picture.roll, picture.at)


def _of_proxy(proxy: Proxy) -> str:
    if proxy.first_byte is None:
        return "its admin door tells nothing"
    p50, p99 = (milliseconds(proxy.first_byte.quantile(part)) for part in (0.5, 0.99))
    over = f"the last {proxy.first_byte_seconds:.0f} s" if proxy.first_byte_seconds else "all since its start"
    return (
        f"{rate(proxy.rates.requests)} requests/s, {rate(proxy.rates.errors)} errors/s; "
        f"first byte p50 {p50}, p99 {p99} ({over})"
    )


def _of_worker(worker: Worker) -> Iterator[str]:
    """Say what it does, and how it failed before, unless that is just what it says."""
    if worker.detail:
        yield worker.detail
    if worker.last_failure is not None and worker.state not in (State.WAITING, State.FAILED):
        yield f"before: {worker.last_failure} ({worker.failed_at})"


def _of_roll(roll: Roll, at: float) -> str:
    begun = f"begun by {roll.by} {duration(at - roll.began)} ago"
    how = "under way" if roll.running else "broken off: `vllm-stack roll` finishes it"
    return f"{begun}, {how}; left: {', '.join(roll.left) or 'nothing'}"
