"""The last words of a server, between two lines of ours."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from vllm_stack.worker import output
from vllm_stack.worker.output import last_words

BEGIN, END = "12:00 worker-0: started vLLM, process 7", "12:01 worker-0: vLLM was killed"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker-0.log"


def test_only_what_was_said_between_the_two_counts(log: Path) -> None:
    log.write_text(f"of an earlier life\n{BEGIN}\n\033[31mhello\033[0m\nERROR out of memory\n{END}\nlater\n")
    assert last_words(log, BEGIN, END) == ["hello", "ERROR out of memory"]


def test_a_server_that_broke_off_in_the_middle_of_a_line_is_heard_too(log: Path) -> None:
    log.write_text(f"{BEGIN}\nhello\nhalf a l{END}\n")
    assert last_words(log, BEGIN, END) == ["hello"]


def test_in_a_log_that_was_rotated_meanwhile_all_counts(log: Path) -> None:
    log.write_text(f"hello\n{END}\n")
    assert last_words(log, BEGIN, END) == ["hello"]


def test_it_waits_for_supervisord_to_write_our_line(log: Path) -> None:
    log.write_text(f"{BEGIN}\nhello\n")

    def write() -> None:
        with log.open("a") as stream:
            stream.write(f"the end\n{END}\n")

    late = threading.Timer(0.2, write)
    late.start()
    assert last_words(log, BEGIN, END) == ["hello", "the end"]
    late.join()


def test_words_of_another_life_are_never_taken_for_these(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "PATIENCE", 0.05)
    log.write_text("ERROR of last week\n")
    assert last_words(log, BEGIN, END) == []
    assert last_words(log, BEGIN, None) == []
    assert last_words(log.with_name("none.log"), BEGIN, END) == []


def test_a_long_story_is_heard_to_its_last_lines(log: Path) -> None:
    story = "".join(f"line {number} {'x' * 200}\n" for number in range(5000))
    log.write_text(f"{BEGIN}\n{story}{END}\n")
    lines = last_words(log, BEGIN, END)
    assert lines[-1].startswith("line 4999 ")
    assert len(lines) >= 300
