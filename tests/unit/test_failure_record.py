"""The record of a worker's last failure: whole, private, and never a reason to break."""

from __future__ import annotations

import json
import stat
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from vllm_stack.worker.failure import (
    REMEMBERED,
    Failure,
    boot_clock,
    last_failure,
    new_failure,
    record_failure,
    remember_failure,
    restart_pause,
)


def record(path: Path, returncode: int, seconds_alive: float) -> Failure:
    failure = new_failure(returncode, seconds_alive, "ready")
    record_failure(path, failure)
    return failure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker-0.failure.json"


def test_what_was_recorded_is_read_back(path: Path) -> None:
    recorded = record(path, -9, 12.345)
    assert last_failure(path) == recorded
    told = replace(recorded, cause="it was bored", evidence="/x", in_row=3, lines=("one", "two"))
    record_failure(path, told)
    assert last_failure(path) == told
    assert (recorded.returncode, recorded.seconds_alive) == (-9, 12.3)


def test_a_record_is_for_its_owner_alone_and_leaves_nothing_beside(path: Path) -> None:
    record(path, 1, 0)
    record(path, 2, 0)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_half_written_record_of_an_earlier_life_is_no_hindrance(path: Path) -> None:
    path.with_suffix(".new").write_text('{"at": 1')
    record(path, 7, 1)
    failure = last_failure(path)
    assert failure is not None
    assert failure.returncode == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"at"',
        "{}",
        '{"at": 1}',
        "\0\0\0\0",
    ],
)
def test_a_damaged_record_counts_as_no_failure(path: Path, text: str) -> None:
    path.write_text(text)
    assert last_failure(path) is None


def test_bytes_that_are_no_text_count_as_no_failure(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00{")
    assert last_failure(path) is None


def test_no_record_or_a_directory_counts_as_no_failure(path: Path) -> None:
    assert last_failure(path) is None
    path.mkdir()
    assert last_failure(path) is None


@pytest.mark.parametrize("field", ["at", "returncode", "seconds_alive", "boot"])
def test_a_field_of_the_wrong_kind_counts_as_no_failure_or_can_be_used(path: Path, field: str) -> None:
    """A wrapper that breaks over its own record would never start its server again."""
    path.write_text(json.dumps(asdict(record(path, 1, 1)) | {field: "soon"}))
    failure = last_failure(path)
    if failure is not None:
        age = failure.age()
        assert age is None or age >= 0
        assert failure.how
        assert f"{failure.seconds_alive:.0f}"


def test_the_age_grows_from_nought_and_never_jumps(path: Path) -> None:
    failure = record(path, 1, 1)
    first = failure.age()
    second = failure.age()
    assert first is not None
    assert second is not None
    assert 0 <= first <= second < 5
    assert replace(failure, at=boot_clock() - 100).age() == pytest.approx(100, abs=1)


def test_a_failure_of_an_earlier_boot_has_no_age(path: Path) -> None:
    failure = replace(record(path, 1, 1), boot="00000000-0000-0000-0000-000000000000")
    assert failure.age() is None


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (0, "ended with exit code 0"),
        (127, "ended with exit code 127"),
        (-9, "was killed by SIGKILL"),
        (-15, "was killed by SIGTERM"),
        (-64, "was killed by SIGRTMAX"),
        (-99, "was killed by signal 99"),
    ],
)
def test_a_failure_says_how_it_ended(path: Path, returncode: int, words: str) -> None:
    assert record(path, returncode, 1).how == words


def test_a_reader_never_sees_half_a_record(path: Path) -> None:
    """`wait` reads while the wrapper writes."""
    record(path, 0, 0)
    over = threading.Event()
    seen: list[Failure | None] = []

    def read() -> None:
        while not over.is_set():
            seen.append(last_failure(path))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        record(path, number, number)
    over.set()
    reader.join()
    assert seen
    assert None not in seen


def test_the_history_keeps_the_last_failures_and_survives_damage(path: Path) -> None:
    history = path.with_name("worker-0.failures.jsonl")
    history.write_bytes(b"\xff\xfe no text")
    for number in range(REMEMBERED + 5):
        remember_failure(history, new_failure(number, 1, "starting"))
    kept = [json.loads(line)["returncode"] for line in history.read_text().splitlines()]
    assert kept == list(range(5, REMEMBERED + 5))


@pytest.mark.parametrize(
    ("in_row", "longest", "pause"),
    [
        (1, 0, 30),
        (9, 0, 30),  # the default: it never grows
        (1, 600, 30),
        (2, 600, 60),
        (5, 600, 480),
        (6, 600, 600),
        (100_000, 600, 600),
    ],
)
def test_the_pause_grows_only_where_a_longest_is_given(in_row: int, longest: float, pause: float) -> None:
    failure = new_failure(1, 1, "starting", in_row)
    assert restart_pause(failure, 30, longest) == pause
