"""What programs have said: where reading begins, what time a line has, and in which order they are shown."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from vllm_stack.logs import generations
from vllm_stack.logs.generations import Generation, open_generations
from vllm_stack.logs.lines import Line, dated, history
from vllm_stack.logs.stamp import stamp

DAY = "2026-11-26 10:00:"


def said(second: int, text: str = "x") -> str:
    return f"{DAY}{second:02} {text}\n"


def when(second: int) -> float:
    time = stamp(said(second), 2e9)
    assert time is not None
    return time


Make = Callable[[str], Generation]


@pytest.fixture
def generation() -> Iterator[Make]:
    """Make files in memory; they are closed at the end."""
    with ExitStack() as held:

        def make(text: str) -> Generation:
            stream = held.enter_context(os.fdopen(os.memfd_create("log"), "w+b"))
            stream.write(text.encode())
            stream.flush()
            return Generation(stream, 0, len(text.encode()), 4e9)

        yield make


def show(directory: Path, *names: str, count: int | None = None, since: int | None = None) -> list[str]:
    """Give the merged lines as `name text`, without their times."""
    with ExitStack() as held:
        logs = [(name, open_generations(directory / f"{name}.log", held)) for name in names]
        lines = history(logs, count, None if since is None else when(since))
        return [f"{line.program} {line.text.strip().removeprefix(DAY)}" for line in lines]


def test_the_last_lines_of_all_programs_are_merged_by_time(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(said(1) + said(4) + said(6))
    (tmp_path / "b.log").write_text(said(2) + said(5) + said(7))
    assert show(tmp_path, "a", "b", count=4) == ["a 04 x", "b 05 x", "a 06 x", "b 07 x"]
    assert show(tmp_path, "a", "b", count=0) == []
    assert len(show(tmp_path, "a", "b", count=100)) == 6


def test_what_was_rotated_comes_before(tmp_path: Path) -> None:
    """By number, not by name; what is not a number is somebody else's file."""
    for number in (10, 2, 1):
        (tmp_path / f"a.log.{number}").write_text(said(20 - number))
    (tmp_path / "a.log.gz").write_text(said(1))
    (tmp_path / "a.log").write_text(said(30))
    assert show(tmp_path, "a", count=3) == ["a 18 x", "a 19 x", "a 30 x"]
    assert show(tmp_path, "a") == ["a 10 x", "a 18 x", "a 19 x", "a 30 x"]
    assert show(tmp_path, "a", since=19) == ["a 19 x", "a 30 x"]


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(said(1))
    (tmp_path / "c.log").write_text("")
    assert show(tmp_path, "a", "b", "c", count=5) == ["a 01 x"]


def test_the_lines_of_a_traceback_stay_together(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(said(1) + "Traceback:\n  line 1\n" + said(5))
    (tmp_path / "b.log").write_text(said(2) + said(3))
    assert show(tmp_path, "a", "b") == ["a 01 x", "a Traceback:", "a line 1", "b 02 x", "b 03 x", "a 05 x"]
    assert show(tmp_path, "a", "b", since=2) == ["b 02 x", "b 03 x", "a 05 x"]


def test_lines_before_the_first_time_have_the_next_one() -> None:
    lines = [("one", 4e9), ("two", 4e9), (said(3), 4e9), ("three", 4e9)]
    assert [line.time for line in dated("a", lines)] == [when(3)] * 4


def test_lines_of_a_log_without_any_time_have_that_of_the_file() -> None:
    assert list(dated("a", [("one", 5.0), ("two", 5.0)])) == [Line(5.0, "a", "one"), Line(5.0, "a", "two")]
    many = [(str(number), 5.0) for number in range(3000)]
    assert [line.text for line in dated("a", many)] == [text for text, _ in many]


def test_a_clock_that_was_set_back_changes_no_order() -> None:
    lines = [(said(5, "one"), 4e9), (said(2, "two"), 4e9), (said(7, "three"), 4e9)]
    assert [line.time for line in dated("a", lines)] == [when(5), when(5), when(7)]


@pytest.mark.parametrize("block", [1, 3, 7, 64, 100000])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_reading_from_the_end_finds_just_so_many_lines_whatever_the_blocks(
    generation: Make, block: int, ending: str
) -> None:
    chance = random.Random(block)
    for size in (0, 1, 2, 5, 30):
        lines = ["z" * chance.choice([0, 1, 2, 9]) for _ in range(size)]
        text = "\n".join(lines) + ending if lines and lines[-1] else "\n".join([*lines, "q"]) + ending
        whole = text.removesuffix("\n").split("\n")
        for count in (0, 1, 2, len(whole) - 1, len(whole), len(whole) + 3):
            with mock.patch.object(generations, "_BLOCK", block):
                one = generation(text)
                lacking = one.leave_last(count)
            wanted = whole[-count:] if count else []
            assert [line.removesuffix("\n") for line in one.lines()] == wanted, (text, count)
            assert lacking == max(0, count - len(whole))


@pytest.mark.parametrize("block", [1, 25, 60, 1000])
def test_a_time_is_found_from_the_end_whatever_the_blocks(generation: Make, block: int) -> None:
    """Nothing that is young enough is left out; that some older lines are left is no matter."""
    text = "".join(said(second) + "more\n" * (second % 4) for second in range(50))
    for since in (0, 1, 20, 49, 50):
        with mock.patch.object(generations, "_BLOCK", block):
            one = generation(text)
            one.leave_since(when(since))
        kept = [line.time for line in dated("a", ((line, 4e9) for line in one.lines()))]
        expected = sum(1 + second % 4 for second in range(since, 50))
        assert sum(time >= when(since) for time in kept) == expected


def test_a_file_is_not_read_for_its_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(said(1) * 200_000)
    with ExitStack() as held, mock.patch.object(os, "pread", side_effect=os.pread) as reads:
        (one,) = open_generations(path, held)
        one.leave_last(100)
        one.leave_since(when(1) + 1)
        assert sum(call.args[1] for call in reads.call_args_list) < 1_500_000


def test_a_line_without_end_comes_in_pieces(generation: Make) -> None:
    text = "y" * (3 * generations.MAX_LINE)
    assert [len(piece) for piece in generation(text).lines()] == [generations.MAX_LINE] * 3
