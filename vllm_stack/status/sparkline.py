"""A row of numbers as a row of little bars."""

from __future__ import annotations

from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"
_UNKNOWN = " "


def sparkline(values: Sequence[float | None], highest: float) -> str:
    """Give a bar for each number, from 0 to `highest`; a gap is where nobody knows it."""
    return "".join(_UNKNOWN if value is None else _bar(value, highest) for value in values)


def _bar(value: float, highest: float) -> str:
    if highest <= 0:
        return _BARS[0]
    # What is not nothing must be seen, next to much more.
    place = round(min(value / highest, 1.0) * (len(_BARS) - 1))
    return _BARS[max(place, 1 if value > 0 else 0)]
