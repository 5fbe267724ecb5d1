"""Percentiles of a handful of values, or of very many."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

SHOWN = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Values in order, asked for their percentiles."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles:
        return cls(tuple(sorted(values)))

    def at(self, percent: float) -> float | None:
        """Give the value that `percent` of all are not above, between two by straight line, as NumPy does.

        None if there are none.
        """
        if not self.values:
            return None
        place = (len(self.values) - 1) * percent / 100
        below = math.floor(place)
        above = min(below + 1, len(self.values) - 1)
        return self.values[below] + (self.values[above] - self.values[below]) * (place - below)

    def is_sure(self, percent: float) -> bool:
        """Whether there are so many values that at least one lies beyond the percentile."""
        return len(self.values) * (100 - percent) >= 100

    @property
    def median(self) -> float | None:
        return self.at(50)
