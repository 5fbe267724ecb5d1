"""The end of a log file, read without reading the file."""

from __future__ import annotations

import re
from pathlib import Path

_BLOCK = 16384
_LINE = 500  # bytes, generously, of a line where many are asked for
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def last_lines(path: Path, count: int) -> list[str]:
    """Give up to `count` last lines that say something, without colour codes; none if unreadable."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - max(_BLOCK, count * _LINE)))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = (_ANSI.sub("", line).rpartition("\r")[2].rstrip() for line in text.splitlines())
    return [line for line in lines if line][-count:]
