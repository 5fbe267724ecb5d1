"""One JSON line for every request, in a file that all processes of the proxy append to.

What a request contained is never in it: no header, no body, no key, no query. Lines are gathered and
written by a thread, so no request waits for a disk; one that is full or gone costs lines, which are
counted, and nothing else. A file that is full is renamed, `.1` to `.2` and so on, by whoever is first to
see it; the others find that out by its number (inode).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gevent
from gevent import get_hub

# Seconds between two writes.
INTERVAL = 0.5
# Bytes that wait for a disk at most.
_MOST_WAITING = 4 * 1024 * 1024


# The key's name, method, route, model, worker, status, and how the answer ended.
Kind = tuple[str | None, str, str, str | None, str | None, int, str]
_FIELDS = ("key", "method", "route", "model", "worker", "status", "end")
_LINE = (
    b'{"time":"%b.%03dZ","id":"%b",%b,"bytes_in":%d,"bytes_out":%d,"first_byte_ms":%b,"duration_ms":%.1f,'
    b'"retries":%d}\n'
)
# Of those the written form is kept.
_MOST_KINDS = 4096


class AccessLog:
    """The lines of one process."""

    def __init__(self, path: Path, most: int, backups: int, lost: Callable[[int], None]) -> None:
        """Take the file, the size in bytes at which it is renamed, and how many of those before are kept.

        `lost` is told of lines that could not be written.
        """
        self._file = _File(path, most, backups)
        self._lost = lost
        self._lines: list[bytes] = []
        self._size = 0
        self._said = False
        self._second, self._stamp = 0, b""
        self._written: dict[Kind, bytes] = {}

    def add(
        self,
        began: float,
        request_id: bytes,
        kind: Kind,
        bytes_in: int,
        bytes_out: int,
        first_byte: float | None,
        duration: float,
        retries: int,
    ) -> None:
        """Note a request that has ended. `began` is a Unix time, the other times are in seconds."""
        if self._size > _MOST_WAITING:
            self._lost(1)
            return
        second = int(began)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        line = _LINE % (
            self._stamp,
            int((began - second) * 1000),
            request_id,
            self._written.get(kind) or self._write(kind),
            bytes_in,
            bytes_out,
            b"null" if first_byte is None else b"%.1f" % (first_byte * 1000),
            duration * 1000,
            retries,
        )
        self._lines.append(line)
        self._size += len(line)

    def _write(self, kind: Kind) -> bytes:
        """Write the part of a line that many have in common."""
        if len(self._written) >= _MOST_KINDS:
            self._written.clear()
        fields = dict(zip(_FIELDS, kind, strict=True))
        written = self._written[kind] = json.dumps(fields, separators=(",", ":"))[1:-1].encode()
        return written

    def open(self) -> None:
        """Open the file, so that it is said at the start if it cannot be written."""
        self._note(0, get_hub().threadpool.apply(self._file.append, (b"",)))

    def run(self) -> None:
        """Write what has gathered, again and again; for ever."""
        self.open()
        while True:
            gevent.sleep(INTERVAL)
            self.flush()

    def flush(self) -> None:
        """Write what has gathered, in a thread."""
        if self._lines:
            lines, self._lines, self._size = self._lines, [], 0
            self._note(len(lines), get_hub().threadpool.apply(self._file.append, (b"".join(lines),)))

    def _note(self, lines: int, trouble: str | None) -> None:
        if trouble is not None:
            self._lost(lines)
            if not self._said:
                logging.getLogger("gunicorn.error").error("Requests are not logged: %s", trouble)
        elif self._said:
            logging.getLogger("gunicorn.error").info("Requests are logged again")
        self._said = trouble is not None


class _File:
    """A file that many append to, and that is renamed when it is full."""

    def __init__(self, path: Path, most: int, backups: int) -> None:
        self._path = path
        self._most = most
        self._backups = backups
        self._descriptor: int | None = None
        # The last of our lines has no end.
        self._torn = False

    def append(self, data: bytes) -> str | None:
        """Append it in one piece; gives what is wrong if that cannot be."""
        try:
            descriptor = self._opened()
            if os.fstat(descriptor).st_size + len(data) > self._most:
                self._rotate(descriptor)
                descriptor = self._opened()
            if self._torn:  # half a line must not take the next one along
                data = b"\n" + data
            written = os.write(descriptor, data)
            if written:  # an opening writes nothing, and tears nothing
                self._torn = data[written - 1] != ord("\n")
            if written < len(data):
                return "the disk is full"
        except OSError as error:
            return f"{self._path}: {error.strerror}"
        return None

    def _opened(self) -> int:
        """Give the file that has the name now."""
        if self._descriptor is not None:
            with suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == os.fstat(self._descriptor).st_ino:
                    return self._descriptor
            os.close(self._descriptor)
            self._descriptor = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._torn = False
        return self._descriptor

    def _rotate(self, full: int) -> None:
        """Rename the full file, unless another process has done so; the lock is on the file itself."""
        fcntl.flock(full, fcntl.LOCK_EX)
        try:
            # Whoever was first may not have made the new file yet: then nothing has the name.
            with suppress(FileNotFoundError):
                if os.stat(self._path).st_ino == os.fstat(full).st_ino and os.fstat(full).st_size:
                    self._rename()
        finally:
            fcntl.flock(full, fcntl.LOCK_UN)

    def _rename(self) -> None:
        names = [self._path, *(self._backup(number) for number in range(1, self._backups + 1))]
        for older, newer in reversed(list(zip(names[1:], names, strict=False))):
            with suppress(FileNotFoundError):
                newer.replace(older)

    def _backup(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")
