"""Times as a person gives them: a duration, or the moment at which something ends."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta

from vllm_stack.errors import UsageError

# Seconds.
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_LONGEST = 36500 * 86400


def parse_duration(text: str) -> timedelta:
    """Read `90s`, `30m`, `24h`, `30d` or `2w`, a century at most; raises `UsageError`."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} is no duration: write a number and s, m, h, d or w, such as 24h or 30d")
    seconds = int(found[1]) * _UNITS[found[2]]
    if seconds > _LONGEST:
        raise UsageError(f"{text} is longer than a century")
    return timedelta(seconds=seconds)


def parse_end(text: str, now: datetime) -> datetime:
    """Read when something ends: so long after `now`, or at a date, which is at its end in UTC.

    A time of day may stand behind the date, with its zone or in UTC. Raises `UsageError` for anything
    else, and for what is over.
    """
    end = now + parse_duration(text) if _DURATION.fullmatch(text) else _moment(text)
    if end <= now:
        raise UsageError(f"{text} is over: name a moment to come")
    return end


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        if len(text) <= len("2026-12-31") and "T" not in text:
            moment = datetime.combine(moment, time(23, 59, 59))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r} is no moment: write a date such as 2026-12-31, or a duration such as 30d"
        ) from None
