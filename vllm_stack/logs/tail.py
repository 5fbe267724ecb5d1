"""The growing end of a log, wherever it goes: renamed and begun anew, cut to nothing, or not there yet."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from vllm_stack.logs.generations import MAX_LINE, Generation, open_generations
from vllm_stack.logs.lines import Line, dated

_PIECE = 1 << 20  # bytes at a time


class Tail:
    """Follows the log of a program from the end of what was read of it; `close` when done."""

    def __init__(self, program: str, path: Path, read: list[Generation]) -> None:
        self._program = program
        self._path = path
        self._held = ExitStack()
        self._file: Generation | None = None
        self._begun = b""
        self._waited = False
        self._last: float | None = None
        if read:
            self._take(read[-1], read[-1].end)

    def close(self) -> None:
        self._held.close()

    def read(self) -> Iterator[Line]:
        """Give the lines that came since the last call.

        A line that has no end yet comes with the next call if it still has none: a program that
        died may never have ended it.
        """
        lines = ((text, time.time()) for text in self._texts() if text.strip())
        for line in dated(self._program, lines, self._last):
            self._last = line.time
            yield line

    def _texts(self) -> Iterator[str]:
        grown = False
        while True:
            for piece in self._pieces():
                grown = True
                yield from self._whole_lines(piece)
            if not self._move_on():
                break
            yield from self._rest()
        if self._waited and not grown:
            yield from self._rest()
        self._waited = bool(self._begun)

    def _pieces(self) -> Iterator[bytes]:
        if self._file is None:
            return
        if os.fstat(self._file.stream.fileno()).st_size < self._file.begin:
            self._file.begin = 0  # cut, and begun anew
        while piece := os.pread(self._file.stream.fileno(), _PIECE, self._file.begin):
            self._file.begin += len(piece)
            yield piece

    def _whole_lines(self, piece: bytes) -> Iterator[str]:
        *lines, self._begun = (self._begun + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
        if len(self._begun) > MAX_LINE:
            yield from self._rest()

    def _rest(self) -> Iterator[str]:
        if self._begun:
            yield self._begun.decode("utf-8", "replace")
        self._begun = b""

    def _move_on(self) -> bool:
        """Go on to the file that came after ours; tells whether there is one.

        Ours may have been moved aside more than once since we looked: then some lie between.
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False  # it will come
        if self._file is not None and (status.st_dev, status.st_ino) == self._file.inode:
            return False
        with ExitStack() as opened:
            generations = open_generations(self._path, opened)
            following = _after(self._file, generations)
            if following is None:
                return False
            self._held.close()
            self._take(following, 0)
        return True

    def _take(self, file: Generation, begin: int) -> None:
        """Follow `file` from `begin` on, over a descriptor of our own: whoever opened it closes it."""
        stream = os.fdopen(os.dup(file.stream.fileno()), "rb")
        self._file = Generation(self._held.enter_context(stream), begin, begin, file.written)


def _after(ours: Generation | None, generations: list[Generation]) -> Generation | None:
    """Choose what follows ours; the newest when ours was removed."""
    if not generations:
        return None
    inodes = [one.inode for one in generations]
    if ours is None or ours.inode not in inodes:
        return generations[-1]
    place = inodes.index(ours.inode) + 1
    return generations[place] if place < len(generations) else None
