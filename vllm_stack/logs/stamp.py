"""The time that a line of a log begins with, in every way that the programs of a stack write it.

    2026-11-26 22:57:07 vllm-stack worker-0: ...                 the wrapper
    2026-11-26 22:57:07,093 INFO spawned: ...                    supervisord, and Python's logging
    [2026-11-26 22:57:07 +0000] [18985] [INFO] ...               gunicorn
    (APIServer pid=1200) INFO 11-26 22:57:07 [api_utils.py:286]  vLLM: no year
    [rank0]:[E1126 22:57:07.426415540 ProcessGroupNCCL...        PyTorch: no year
    {"time": "2026-11-26T22:57:07.093Z", ...}                    a request, one JSON object a line

All but gunicorn's and the requests' are in the local time of the machine.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache

_DATED = re.compile(
    r'(?:\[|\{"time": ?")?(\d{4})-(\d\d)-(\d\d)[ T](\d\d:\d\d:\d\d)(?:[.,](\d{1,9}))? ?(Z|[+-]\d\d:?\d\d)?'
)
_VLLM = re.compile(r"(?:\([^()]*\) )*(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d)-(\d\d) (\d\d:\d\d:\d\d)\b")
_TORCH = re.compile(r"(?:\[rank\d+\]:)?\[[IWEFC](\d\d)(\d\d) (\d\d:\d\d:\d\d)\.(\d{1,9}) ")
# Clocks differ, and a line may be written a little after the time that it names.
_AHEAD = timedelta(days=1)
# The 29th of February comes every four years, every eight around 2100.
_YEARS = 8


def stamp(line: str, by: float) -> float | None:
    """Give the time of a line that was written at `by` at the latest (both Unix times), None if it has none.

    Where the line tells no year it is the last one that this allows. What lies ahead of `by` is no time of a
    line, but a line about something else.
    """
    if found := _DATED.match(line):
        year, month, day, clock, fraction, zone = found.groups()
        whole = _whole(int(year), int(month), int(day), clock, zone)
    elif found := _VLLM.match(line):
        (month, day, clock), fraction = found.groups(), None
        whole = _in_its_year(int(month), int(day), clock, int(by) // 60)
    elif found := _TORCH.match(line):
        month, day, clock, fraction = found.groups()
        whole = _in_its_year(int(month), int(day), clock, int(by) // 60)
    else:
        return None
    if whole is None or not 0 <= whole <= by + _AHEAD.total_seconds():
        return None
    return whole + float(f"0.{fraction}") if fraction else whole


# Many lines of a log are of the same second.
@lru_cache(maxsize=256)
def _whole(year: int, month: int, day: int, clock: str, zone: str | None = None) -> float | None:
    try:
        hours, minutes, seconds = (int(part) for part in clock.split(":"))
        return datetime(year, month, day, hours, minutes, seconds, tzinfo=_zone(zone)).timestamp()
    except (ValueError, OverflowError):
        return None  # it only looked like a time


@lru_cache(maxsize=256)
def _in_its_year(month: int, day: int, clock: str, by_minute: int) -> float | None:
    latest = datetime.fromtimestamp(by_minute * 60) + _AHEAD
    for year in range(latest.year, latest.year - _YEARS - 1, -1):
        whole = _whole(year, month, day, clock)
        if whole is not None and whole <= latest.timestamp():
            return whole
    return None


def _zone(text: str | None) -> timezone | None:
    if text is None:
        return None
    if text == "Z":
        return UTC
    digits = text[1:].replace(":", "")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-offset if text[0] == "-" else offset)
