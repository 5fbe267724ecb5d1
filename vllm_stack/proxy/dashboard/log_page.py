"""The end of a program's log, as text: which one is a name out of the settings, never a path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from vllm_stack.log_tail import last_lines
from vllm_stack.terminal_text import printable

DEFAULT, MOST = 200, 500  # lines
_LONGEST = 2000  # characters of a line


class UnknownLog(Exception):
    """No program of this stack is called so, or that is no number of lines; the message says what is."""


def asked_log(query: str, logs: Mapping[str, Path]) -> tuple[Path, int]:
    """Read `worker=NAME&lines=N`: which log, and how many lines; raises `UnknownLog`."""
    fields = parse_qs(query[:1000])
    path = logs.get(fields.get("worker", [""])[-1])
    if path is None:
        raise UnknownLog(f"say worker= and one of {', '.join(logs)}")
    count = fields.get("lines", [str(DEFAULT)])[-1]
    if not count.isascii() or not count.isdecimal() or not 1 <= int(count) <= MOST:
        raise UnknownLog(f"lines= takes a number from 1 to {MOST}")
    return path, int(count)


def read_log(path: Path, count: int) -> bytes:
    """Give the last lines, of bounded length and with every control character spelled out. Reads a disk."""
    lines = (printable(line)[:_LONGEST] for line in last_lines(path, count))
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
