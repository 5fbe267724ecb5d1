"""Figures round by round: ratios are taken within a round, so that the machine's mood cancels out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Figures = dict[str, float]


def percentile(values: Sequence[float], percent: float) -> float:
    """Give the smallest value that at least `percent` per cent of all values do not exceed."""
    if not values:
        return math.nan
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """The median of all rounds, and how far they lay apart."""

    median: float
    low: float
    high: float


def summarize(values: Sequence[float]) -> Summary | None:
    """Give None where nothing was measured."""
    if not values:
        return None
    return Summary(statistics.median(values), min(values), max(values))


@dataclass
class Record:
    """All that was measured: for a measurement and a target the figures of every round."""

    rounds: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, measurement: str, target: str, number: int, figures: Figures) -> None:
        self.rounds.setdefault((measurement, target), {}).setdefault(number, {}).update(figures)

    def targets(self, measurement: str) -> list[str]:
        """Give what was measured, in the order in which it began."""
        return [target for name, target in self.rounds if name == measurement]

    def series(self, measurement: str, target: str, figure: str) -> dict[int, float]:
        """Give one figure, round by round; rounds that failed are not there."""
        rounds = self.rounds.get((measurement, target), {})
        return {number: figures[figure] for number, figures in rounds.items() if figure in figures}

    def summary(self, measurement: str, target: str, figure: str) -> Summary | None:
        return summarize(list(self.series(measurement, target, figure).values()))

    def as_json(self) -> dict[str, object]:
        return {
            "rounds": [
                {"measurement": measurement, "target": target, "round": number, **figures}
                for (measurement, target), rounds in self.rounds.items()
                for number, figures in rounds.items()
            ],
            "skipped": self.skipped,
            "faults": self.faults,
        }


def by_round(
    combine: Callable[[float, float], float], ours: dict[int, float], theirs: dict[int, float]
) -> list[float]:
    """Combine two series round by round; a round that one of them lacks does not count."""
    return [combine(ours[number], theirs[number]) for number in ours if number in theirs]


def ratios(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    return by_round(lambda a, b: a / b if b else math.inf, ours, theirs)


def differences(ours: dict[int, float], theirs: dict[int, float]) -> list[float]:
    return by_round(lambda a, b: a - b, ours, theirs)
