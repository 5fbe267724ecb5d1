"""How a line of a log is shown: under its program's name to people, as an object to programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from vllm_stack.logs.lines import Line
from vllm_stack.logs.request_line import in_words, request_of
from vllm_stack.logs.sources import REQUESTS
from vllm_stack.terminal_text import printable

_COLOURS = ("green", "yellow", "blue", "magenta", "bright_green", "bright_yellow", "bright_blue")
_OF_THE_STACK = {"proxy": "cyan", "supervisord": "white", REQUESTS: "bright_black"}


class Screen:
    """Shows the lines of these programs, aligned, each program in a colour of its own."""

    def __init__(self, names: Sequence[str], colours: bool) -> None:
        width = max(len(name) for name in names)
        workers = [name for name in names if name not in _OF_THE_STACK]
        chosen = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(workers)}
        self._prefixes = {
            name: click.style(f"{name:{width}} |", fg=(_OF_THE_STACK | chosen)[name]) if colours
            else f"{name:{width}} |"
            for name in names
        }  # fmt: skip

    def show(self, line: Line) -> str:
        """Give a line for a terminal. Of a progress bar, which overwrites itself, the last state is left."""
        text = line.text.rstrip().rpartition("\r")[2]
        if line.program == REQUESTS:
            text = in_words(text)
        return f"{self._prefixes[line.program]} {printable(text)}"


def as_json(line: Line) -> str:
    """Give a line as JSON, with its time in UTC."""
    told: dict[str, Any] = {
        "time": datetime.fromtimestamp(line.time, UTC).isoformat(timespec="milliseconds"),
        "program": line.program,
    }
    request = request_of(line.text) if line.program == REQUESTS else None
    told |= {"text": line.text.rstrip("\r\n")} if request is None else {"request": request}
    return json.dumps(told)
