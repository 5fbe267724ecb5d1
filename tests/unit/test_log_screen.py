"""How a line of a log is shown: nothing that a program says moves the cursor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vllm_stack.errors import UsageError
from vllm_stack.layout import Layout
from vllm_stack.logs.lines import Line
from vllm_stack.logs.screen import Screen, as_json
from vllm_stack.logs.sources import find_sources
from vllm_stack.terminal_text import printable

REQUEST = {"time": "2026-11-26T10:00:00Z", "worker": "worker-0", "method": "POST", "route": "/v1/x",
           "status": 200, "key": None, "seconds": 1.5}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, with ümläuts and 漢字　and\ttabs", "plain, with ümläuts and 漢字　and\ttabs"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\x00b\x7fc\x9bd", "a\\x00b\\x7fc\\x9bd"),
        ("evil\u202etxt", "evil\\u202etxt"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_not_to_be_printed_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_lines_stand_under_the_names_of_their_programs() -> None:
    screen = Screen(["proxy", "worker-0"], colours=False)
    assert screen.show(Line(0, "proxy", "one\n")) == "proxy    | one"
    assert screen.show(Line(0, "worker-0", "two\r\n")) == "worker-0 | two"
    assert screen.show(Line(0, "worker-0", "10%\r20%\r30%\n")) == "worker-0 | 30%"


def test_colours_are_there_only_where_they_are_wanted() -> None:
    line = Line(0, "worker-0", "two\n")
    assert "\x1b" not in Screen(["worker-0"], colours=False).show(line)
    assert Screen(["worker-0"], colours=True).show(line).startswith("\x1b[")


def test_a_request_is_said_in_words_and_kept_whole_in_json() -> None:
    line = Line(1.5, "requests", json.dumps(REQUEST) + "\n")
    assert Screen(["requests"], colours=False).show(line) == (
        "requests | 2026-11-26T10:00:00Z POST /v1/x 200 worker=worker-0 seconds=1.5"
    )
    told = json.loads(as_json(line))
    assert told == {"time": "1970-01-01T00:00:01.500+00:00", "program": "requests", "request": REQUEST}


@pytest.mark.parametrize("text", ['{"time": "2026', "[1]", "", "[" * 5000])
def test_what_is_no_request_stays_as_it_is(text: str) -> None:
    line = Line(0, "requests", text)
    assert Screen(["requests"], colours=False).show(line) == f"requests | {text}"
    assert json.loads(as_json(line))["text"] == text


def test_a_program_is_asked_for_by_its_name(tmp_path: Path) -> None:
    """Those of earlier renders, too, as long as their logs are there."""
    layout = Layout.at(tmp_path)
    layout.logs.mkdir()
    for name in ("worker-10", "worker-9", "worker-x"):
        layout.log(name).touch()

    def names(*asked: str) -> list[str]:
        return [source.name for source in find_sources(layout, ["worker-0"], asked)]

    assert names() == ["proxy", "worker-0", "supervisord"]
    assert names("requests", "worker-9", "requests") == ["requests", "worker-9"]
    with pytest.raises(
        UsageError, match=r"'worker-1' .* proxy, worker-0, supervisord, worker-9, worker-10, requests$"
    ):
        names("worker-1")
