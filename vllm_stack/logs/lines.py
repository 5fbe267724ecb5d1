"""What programs have said so far, in the order of time."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vllm_stack.logs.generations import Generation
from vllm_stack.logs.stamp import stamp

# Lines that are held back until one tells a time.
_PATIENCE = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a program; its time (Unix) is its own, or that of the line before that has one."""

    time: float
    program: str
    text: str


def history(
    logs: Sequence[tuple[str, list[Generation]]], count: int | None, since: float | None
) -> Iterator[Line]:
    """Merge what is in the open logs of these programs: the last `count` lines of all, those `since` then."""
    for _, generations in logs:
        if since is not None:
            _skip_older(generations, since)
        elif count is not None:
            _skip_all_but(generations, count)
    merged: Iterable[Line] = heapq.merge(
        *(_said(name, generations) for name, generations in logs), key=lambda line: line.time
    )
    if since is not None:
        merged = (line for line in merged if line.time >= since)
    return iter(merged if count is None else deque(merged, maxlen=count))


def dated(program: str, lines: Iterable[tuple[str, float]], before: float | None = None) -> Iterator[Line]:
    """Give every line its time; with each comes when it was written at the latest (Unix time).

    `before` is the time of the line before the first one. A line without a time has that of the line
    before it, so the lines of a traceback stay together; at the very beginning of all it has that of the
    next. The lines of a program keep their order, also when its clock was set back.
    """
    time = before
    waiting: list[str] = []
    written = 0.0
    for text, written in lines:
        own = stamp(text, written)
        if own is not None:
            time = own if time is None else max(time, own)
        elif time is None and len(waiting) < _PATIENCE:
            waiting.append(text)
            continue
        elif time is None:
            time = written
        yield from (Line(time, program, held) for held in waiting)
        waiting.clear()
        yield Line(time, program, text)
    yield from (Line(written, program, held) for held in waiting)


def _said(name: str, generations: list[Generation]) -> Iterator[Line]:
    texts = ((text, one.written) for one in generations for text in one.lines())
    return dated(name, itertools.filterfalse(_is_blank, texts))


def _is_blank(line: tuple[str, float]) -> bool:
    return not line[0].strip()


def _skip_older(generations: list[Generation], since: float) -> None:
    generations[:] = [one for one in generations if one.written >= since]
    for one in generations:
        one.leave_since(since)


def _skip_all_but(generations: list[Generation], count: int) -> None:
    for one in reversed(generations):
        count = one.leave_last(count)
