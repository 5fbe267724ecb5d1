"""`vllm-stack logs`: what all programs of a stack say, in one stream."""

from __future__ import annotations

import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import click

from vllm_stack.commands.stack import find_stack
from vllm_stack.errors import StackError
from vllm_stack.files import shown
from vllm_stack.logs.generations import Generation, open_generations
from vllm_stack.logs.lines import Line, history
from vllm_stack.logs.screen import Screen, as_json
from vllm_stack.logs.sources import REQUESTS, Source, find_sources
from vllm_stack.logs.tail import Tail

# Where nobody says how much, and from when on.
_LINES = 50
_EVERY = 0.25  # seconds between two looks at the files
_AT_ONCE = 500  # lines


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What the user asked of `vllm-stack logs`; `since` is a Unix time, `lines` are those of all programs."""

    out: Path
    programs: tuple[str, ...] = ()
    follow: bool = False
    since: float | None = None
    lines: int | None = None
    as_json: bool = False


def show_logs(options: LogOptions) -> None:
    """Print the logs; with `follow` until Ctrl-C.

    Raises `NoStack` when none was rendered, `UsageError` for a program that it does not have, `StackError`
    when there is no log yet and none is waited for, `OSError` for one that may not be read.
    """
    stack = find_stack(options.out)
    sources = find_sources(stack.layout, stack.worker_names, options.programs)
    show = as_json if options.as_json else Screen([one.name for one in sources], _is_colourful()).show
    with ExitStack() as held:
        opened = [(one, open_generations(one.path, held)) for one in sources]
        if not options.follow and not any(generations for _, generations in opened):
            raise StackError(_nothing(stack.layout.out, sources))
        tails = [_tail(source, generations, held) for source, generations in opened if options.follow]
        count = _LINES if options.lines is None and options.since is None else options.lines
        logs = [(source.name, generations) for source, generations in opened]
        _print(history(logs, count, options.since), show)
        if options.follow:
            _follow(tails, options.since, show)


def _tail(source: Source, generations: list[Generation], held: ExitStack) -> Tail:
    tail = Tail(source.name, source.path, generations)
    held.callback(tail.close)
    return tail


def _follow(tails: Sequence[Tail], since: float | None, show: Callable[[Line], str]) -> None:
    while True:
        lines = heapq.merge(*(tail.read() for tail in tails), key=lambda line: line.time)
        _print((line for line in lines if since is None or line.time >= since), show)
        time.sleep(_EVERY)


def _print(lines: Iterable[Line], show: Callable[[Line], str]) -> None:
    """Print many lines in one go: each `echo` is a write of its own."""
    texts = (show(line) for line in lines)
    while some := list(itertools.islice(texts, _AT_ONCE)):
        click.echo("\n".join(some))


def _is_colourful() -> bool:
    """Whether a person looks who has not asked for plain text (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _nothing(out: Path, sources: Sequence[Source]) -> str:
    if [source.name for source in sources] == [REQUESTS]:
        return f"No request was noted: there is no {shown(sources[0].path)}"
    names = ", ".join(source.name for source in sources)
    return f"Nothing was said yet by {names}: vllm-stack up --out {shown(out)}"
