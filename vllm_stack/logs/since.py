"""How a person says from when on."""

from __future__ import annotations

from datetime import datetime

from vllm_stack.errors import UsageError
from vllm_stack.moments import parse_duration


def parse_since(text: str, now: float) -> float:
    """Read `10m` (so long before `now`) or a time, local unless it names a zone, as Unix time.

    Raises `ValueError` for anything else.
    """
    try:
        return now - parse_duration(text).total_seconds()
    except UsageError:
        pass  # then it is a time
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ValueError(
            f"{text!r} is neither so long ago (10m, 2h, 1d) nor a time (2026-11-26T10:00)"
        ) from None
