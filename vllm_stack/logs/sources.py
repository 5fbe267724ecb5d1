"""Whose logs there are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import UsageError
from vllm_stack.layout import WORKER_NAME, Layout

REQUESTS = "requests"


@dataclass(frozen=True, slots=True)
class Source:
    """A program and its log; what supervisord moved aside lies beside it as `.1`, `.2`, ..."""

    name: str
    path: Path


def find_sources(layout: Layout, workers: Iterable[str], asked: Sequence[str]) -> list[Source]:
    """Give the logs that are `asked` for; without a name those of all programs, but not the requests.

    Workers of earlier renders can be asked for as long as their logs are there. Raises `UsageError` for
    a name that nothing has.
    """
    programs = ["proxy", *workers, "supervisord"]
    gone = sorted({path.stem for path in layout.logs.glob("*.log")} - {*programs}, key=_by_number)
    known = [*programs, *(name for name in gone if WORKER_NAME.fullmatch(name)), REQUESTS]
    for name in asked:
        if name not in known:
            raise UsageError(f"{name!r} has no log here: there are {', '.join(known)}")
    return [Source(name, _path(layout, name)) for name in dict.fromkeys(asked or programs)]


def _path(layout: Layout, name: str) -> Path:
    return layout.access_log if name == REQUESTS else layout.log(name)


def _by_number(name: str) -> tuple[int, str]:
    number = name.rpartition("-")[2]
    return int(number) if number.isdecimal() else 0, name
