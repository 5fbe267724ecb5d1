"""The growing end of a log, through all that is done to log files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vllm_stack.logs.generations import MAX_LINE, open_generations
from vllm_stack.logs.tail import Tail


class Following:
    """A log that is written to and followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with ExitStack() as held:
            self.tail = Tail("a", path, open_generations(path, held))

    def write(self, text: str) -> None:
        with self.path.open("a") as stream:
            stream.write(text)

    def rotate(self) -> None:
        """Rename the log and what was renamed before, as supervisord does."""
        for number in (2, 1):
            one = self.path.with_name(f"a.log.{number}")
            if one.exists():
                one.rename(self.path.with_name(f"a.log.{number + 1}"))
        self.path.rename(self.path.with_name("a.log.1"))
        self.path.touch()

    def reads(self) -> list[str]:
        return [line.text for line in self.tail.read()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Following]:
    path = tmp_path / "a.log"
    path.write_text("before\n")
    following = Following(path)
    yield following
    following.tail.close()


def test_only_what_is_new_comes_and_only_once(log: Following) -> None:
    assert log.reads() == []
    log.write("one\ntwo\n")
    assert log.reads() == ["one", "two"]
    assert log.reads() == []


def test_a_line_is_waited_for_until_it_has_its_end(log: Following) -> None:
    log.write("half")
    assert log.reads() == []
    log.write(" a line\n")
    assert log.reads() == ["half a line"]


def test_a_line_that_never_ends_comes_all_the_same(log: Following) -> None:
    log.write("last words")
    assert log.reads() == []
    assert log.reads() == ["last words"]
    assert log.reads() == []
    log.write("y" * (MAX_LINE + 1))
    assert log.reads() == ["y" * (MAX_LINE + 1)]


def test_a_log_that_is_moved_aside_is_read_to_its_end_and_then_the_new_one(log: Following) -> None:
    log.write("one\ntw")
    assert log.reads() == ["one"]
    log.write("o\nthree, without an end")
    log.rotate()
    log.write("four\n")
    assert log.reads() == ["two", "three, without an end", "four"]


def test_a_log_that_is_moved_aside_twice_between_two_looks_loses_nothing(log: Following) -> None:
    log.write("one\n")
    log.rotate()
    log.write("two\n")
    log.rotate()
    log.write("three\n")
    assert log.reads() == ["one", "two", "three"]


def test_a_log_that_is_cut_is_read_from_its_beginning(log: Following) -> None:
    log.write("one\n")
    assert log.reads() == ["one"]
    os.truncate(log.path, 0)
    log.write("two\n")
    assert log.reads() == ["two"]


def test_a_log_that_is_removed_may_come_back(log: Following) -> None:
    log.path.unlink()
    assert log.reads() == []
    log.write("one\n")
    assert log.reads() == ["one"]


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    log = Following(tmp_path / "a.log")
    assert log.reads() == []
    log.write("one\n")
    assert log.reads() == ["one"]
    log.tail.close()


def test_a_line_without_a_time_follows_the_line_before_over_two_looks(log: Following) -> None:
    log.write("2026-11-26 10:00:00 one\n")
    (first,) = log.tail.read()
    log.write("Traceback:\n")
    (second,) = log.tail.read()
    assert second.time == first.time


def test_a_log_that_is_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.log")
    with ExitStack() as held, pytest.raises(OSError, match="Not a regular file"):
        open_generations(tmp_path / "a.log", held)
