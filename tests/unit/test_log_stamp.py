"""When a line of a log was said, in every way that the programs of a stack write it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from vllm_stack.logs.since import parse_since
from vllm_stack.logs.stamp import stamp

NOON = datetime(2026, 11, 26, 12, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def _in_utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("line", "when"),
    [
        ("2026-11-26 10:00:07 vllm-stack worker-0: stopped", "2026-11-26 10:00:07"),
        ("2026-11-26 10:00:07,093 INFO spawned: 'worker-0'", "2026-11-26 10:00:07.093"),
        ("[2026-11-26 12:00:07 +0200] [18985] [INFO] Listening", "2026-11-26 10:00:07"),
        ("[2026-11-26 05:30:07 -0430] [18985] [INFO] Listening", "2026-11-26 10:00:07"),
        ("(APIServer pid=1200) INFO 11-26 10:00:07 [api_utils.py:286] x", "2026-11-26 10:00:07"),
        ("(a) (Worker_TP0 pid=14) ERROR 11-26 10:00:07 [x.py:1] y", "2026-11-26 10:00:07"),
        ("WARNING 11-26 10:00:07 [cpu.py:224] Triton", "2026-11-26 10:00:07"),
        ("[rank0]:[E1126 10:00:07.250000000 ProcessGroupNCCL.cpp:629] x", "2026-11-26 10:00:07.25"),
        ("[W1126 10:00:07.5 socket.cpp:1] x", "2026-11-26 10:00:07.5"),
        ('{"time": "2026-11-26T10:00:07.250Z", "status": 200}', "2026-11-26 10:00:07.25"),
        ('{"time":"2026-11-26T10:00:07+00:00"}', "2026-11-26 10:00:07"),
        # The year is the last one that is possible, and the 29th is none in most of them.
        ("INFO 12-31 23:59:59 [x.py:1] last year", "2025-12-31 23:59:59"),
        ("INFO 02-29 10:00:00 [x.py:1] a leap year", "2024-02-29 10:00:00"),
        # A clock that was a little ahead.
        ("INFO 11-27 08:00:00 [x.py:1] x", "2026-11-27 08:00:00"),
    ],
)
def test_a_line_tells_its_time(line: str, when: str) -> None:
    assert stamp(line, NOON) == pytest.approx(at(when))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Traceback (most recent call last):",
        "INFO:     Application startup complete.",
        "2026-13-45 10:00:00 no such day",
        "2026-11-26 25:00:00 no such hour",
        "INFO 13-26 10:00:00 [x.py:1] no such month",
        "2099-01-01 00:00:00 what is to come was not said yet",
        "0000-00-00 00:00:00",
        "[0001-01-01 00:00:00 +1400] no calendar begins before that",
        "  2026-11-26 10:00:00 indented, as in a list of something",
        "[2026-11-26 12:00:07 +9999] no such zone",
    ],
)
def test_what_only_looks_like_a_time_is_none(line: str) -> None:
    assert stamp(line, NOON) is None


def test_a_local_time_is_that_of_the_machine() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "TZ", "XYZ-3")  # three hours east
        time.tzset()
        stamp.__globals__["_whole"].cache_clear()
        assert stamp("2026-11-26 13:00:00 vllm-stack worker-0: x", NOON) == at("2026-11-26 10:00:00")
        stamp.__globals__["_whole"].cache_clear()


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("30s", "2026-11-26 11:59:30"),
        ("10m", "2026-11-26 11:50:00"),
        ("2h", "2026-11-26 10:00:00"),
        ("2d", "2026-11-24 12:00:00"),
        ("2026-11-26T10:00", "2026-11-26 10:00:00"),
        ("2026-11-26 10:00:30", "2026-11-26 10:00:30"),
        ("2026-11-26", "2026-11-26 00:00:00"),
        ("2026-11-26T10:00+02:00", "2026-11-26 08:00:00"),
    ],
)
def test_since_is_so_long_ago_or_a_time(text: str, when: str) -> None:
    assert parse_since(text, NOON) == pytest.approx(at(when))


@pytest.mark.parametrize("text", ["", "10", "-10m", "m", "nan", "10 m", "yesterday", "2026-02-30"])
def test_any_other_since_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="neither so long ago"):
        parse_since(text, NOON)
