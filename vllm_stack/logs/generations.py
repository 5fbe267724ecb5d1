"""A log file and those it was rotated into, read from any place on, never whole into memory.

All of them are opened before the first is read: supervisord may rename them meanwhile.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vllm_stack.logs.stamp import stamp
from vllm_stack.regular_file import open_regular

# Bytes; what is longer comes in pieces.
MAX_LINE = 65536
_BLOCK = 262144
_NUMBER = re.compile(r"\.([1-9][0-9]*)")


@dataclass(eq=False)
class Generation:
    """An open file, of which the lines between two offsets count; it last grew at `written` (Unix time)."""

    stream: BinaryIO
    begin: int
    end: int
    written: float

    @classmethod
    def of(cls, stream: BinaryIO) -> Generation:
        status = os.fstat(stream.fileno())
        return cls(stream, 0, status.st_size, status.st_mtime)

    @property
    def inode(self) -> tuple[int, int]:
        status = os.fstat(self.stream.fileno())
        return status.st_dev, status.st_ino

    def lines(self) -> Iterator[str]:
        """Give the lines from `begin` to `end`."""
        self.stream.seek(self.begin)
        left = self.end - self.begin
        while left > 0 and (line := self.stream.readline(min(left, MAX_LINE))):
            left -= len(line)
            yield line.decode("utf-8", "replace")

    def leave_last(self, count: int) -> int:
        """Move `begin` so that `count` lines are left; gives how many there are too few."""
        lacking = count
        if lacking and self.end:
            # The last line may have its end yet to come.
            lacking += self._at(self.end - 1, 1) == b"\n"
        position = self.begin = self.end
        while lacking and position > 0:
            size = min(_BLOCK, position)
            position -= size
            block = self._at(position, size)
            at = len(block)
            while lacking and (found := block.rfind(b"\n", 0, at)) >= 0:
                lacking -= 1
                at = found
            self.begin = position + at + 1 if not lacking else 0
        # What stands before the first line end is a line, too.
        return max(0, lacking - 1) if self.end else count

    def leave_since(self, since: float) -> None:
        """Move `begin` to a line that is older than `since`, not far before the first that is not."""
        position = self.end
        self.begin = 0
        while position > 0:
            position = max(0, position - _BLOCK)
            begin, time = self._first_stamp(position)
            if time is not None and time < since:
                self.begin = begin
                return

    def _first_stamp(self, position: int) -> tuple[int, float | None]:
        """Find the first line behind `position` that tells its time, and where it begins."""
        block = self._at(position, min(_BLOCK, self.end - position))
        at = 0 if position == 0 else block.find(b"\n") + 1
        while 0 <= at < len(block):
            end = block.find(b"\n", at)
            line = block[at : end if end >= 0 else None]
            time = stamp(line[:200].decode("utf-8", "replace"), self.written)
            if time is not None or end < 0:
                return position + at, time
            at = end + 1
        return position, None

    def _at(self, position: int, size: int) -> bytes:
        return os.pread(self.stream.fileno(), size, position)


def open_generations(path: Path, held: ExitStack) -> list[Generation]:
    """Open a log and what it was rotated into, the oldest first; `held` closes them.

    None is no error: the program may not have started yet. Raises `OSError` for one that may not be
    read, or is none: of a FIFO nobody knows the end.
    """
    found: dict[tuple[int, int], Generation] = {}
    for name in _names(path):
        try:
            generation = Generation.of(held.enter_context(open_regular(name)))
        except FileNotFoundError:
            continue  # rotated just now
        found.setdefault(generation.inode, generation)
    return list(found.values())


def _names(path: Path) -> list[Path]:
    rotated = {}
    for beside in path.parent.glob(f"{path.name}.*"):
        if number := _NUMBER.fullmatch(beside.name.removeprefix(path.name)):
            rotated[int(number[1])] = beside
    return [*(rotated[number] for number in sorted(rotated, reverse=True)), path]
