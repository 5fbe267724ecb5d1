"""What Ray's workers write: replicas, and with them vLLM's engines, write into files of Ray's session.

Ray could write all of it to its own output (RAY_LOG_TO_STDERR), but that is thousands of lines a minute about
Ray itself. So these files are followed, and only they.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

# The most (bytes) of one file at a look; the rest comes with the next ones.
_CHUNK = 256 * 1024
# What Ray writes for its own tools: which job, actor or task the following lines are of.
_MARKS = re.compile(r":(?:job_id|actor_name|task_name):")


class Words:
    """Follows the output of all workers of the session that runs below `temp`.

    What is there when it begins is of an earlier life, and was passed on by it.
    """

    def __init__(self, temp: Path) -> None:
        self._logs = temp / "session_latest" / "logs"
        self._read: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}
        for path in self._files():
            with contextlib.suppress(OSError):
                self._read[path] = path.stat().st_size

    def _files(self) -> list[Path]:
        return sorted(self._logs.glob("worker-*.[eo][ru][rt]"))

    def fresh(self) -> Iterator[str]:
        """Give the whole lines that have been written since the last look, file by file."""
        for path in self._files():
            with contextlib.suppress(OSError):  # Ray may turn it over, or remove it
                yield from self._lines(path)

    def _lines(self, path: Path) -> Iterator[str]:
        at = self._read.get(path, 0)
        size = path.stat().st_size
        if size <= at:
            if size < at:  # it was begun anew
                self._read[path] = 0
                self._rest.pop(path, None)
            return
        with path.open("rb") as file:
            file.seek(at)
            text = self._rest.pop(path, b"") + file.read(_CHUNK)
            self._read[path] = file.tell()
        *lines, rest = text.split(b"\n")
        self._rest[path] = rest[-_CHUNK:]
        for line in lines:
            said = line.decode("utf-8", "replace").rstrip("\r")
            if said and not _MARKS.match(said):
                yield said
