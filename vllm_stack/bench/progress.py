"""How far a sweep is, for whoever watches it; nothing is shown where nobody does."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from vllm_stack.bench.sweep import Step
from vllm_stack.bench.way import Way, clients, in_words

# Drawing takes time from the load generator.
_A_SECOND = 4


class Bar:
    """A bar on standard error, with a place for every step; it is gone when the sweep is over."""

    def __init__(self, steps: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            refresh_per_second=_A_SECOND,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("Warming up", total=steps)
        self._what = ""
        self._begun = 0
        self._requests = 0

    def begin(self, step: Step, way: Way) -> None:
        self._what = f"{clients(step.level)} {in_words(way.name)}"
        self._progress.update(self._task, completed=self._begun)
        self._begun += 1

    def note(self) -> None:
        """One more request has ended."""
        self._requests += 1
        self._progress.update(self._task, description=f"{self._what}, {self._requests} requests")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
