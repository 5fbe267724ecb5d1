"""Files in /dev/shm that a killed server leaves behind, and their end.

Python's shared memory and semaphores are files there with random names. Their own janitor (the
resource tracker) removes them, unless it was killed too; then hundreds of megabytes stay until a
reboot. While a server lives, its wrapper notes which of these files its processes have mapped;
when the server is gone, those that nobody maps any more are removed. A file is never taken for
ours by its name: a person may well keep a model in /dev/shm. Nor is a mapping known by it: glibc
makes a semaphore under another name and renames it, so what counts is the inode.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_stack.program import boot_id
from vllm_stack.records.record import read_record, write_record

SHM = Path("/dev/shm")  # noqa: S108 - the very directory
# A line of /proc/PID/maps: addresses, permissions, offset, device, inode, path (proc_pid_maps(5)).
_MAPPED = re.compile(rf"^\S+ \S+ \S+ \S+ (\d+)\s+{SHM}/", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """What one program has in /dev/shm: noted while it lives, removed when it is gone."""

    record: Path

    def begin(self) -> None:
        """Begin the record of a life: what is there already is not of it. Raises `OSError`."""
        self._write(set(), set(_own_files()))

    def note(self, pids: Iterable[int]) -> None:
        """Add what these processes map now; raises `OSError` when the record cannot be written."""
        known = self._read()
        if known is None:
            return
        names, before = known
        mapped = _mapped_by(pids)
        fresh = {name for name, inode in _own_files().items() if inode in mapped} - before - names
        if fresh:
            self._write(names | fresh, before)

    def stale(self) -> list[Path]:
        """Give what the last life left: noted files that no living process maps any more."""
        known = self._read()
        if known is None:
            return []
        names, _ = known
        left = {name: inode for name, inode in _own_files().items() if name in names}
        mapped = _mapped_by(psutil.pids()) if left else set()
        return [SHM / name for name, inode in sorted(left.items()) if inode not in mapped]

    def remove_stale(self, say: Callable[[str], object]) -> list[Path]:
        """Remove what is stale and forget the record; only when the program's processes are gone."""
        removed = []
        for path in self.stale():
            with contextlib.suppress(OSError):
                size = path.stat().st_size
                path.unlink()
                removed.append(path)
                say(f"removed {path} ({size} bytes), left behind by a server that was killed")
        with contextlib.suppress(OSError):
            self.record.unlink(missing_ok=True)
        return removed

    def _write(self, names: set[str], before: set[str]) -> None:
        fields = {"boot": boot_id(), "names": sorted(names), "before": sorted(before)}
        write_record(self.record, fields)

    def _read(self) -> tuple[set[str], set[str]] | None:
        """Give the names of this life and those from before it; None without a record of this boot."""
        fields = read_record(self.record)
        names, before = fields.get("names"), fields.get("before")
        if fields.get("boot") != boot_id() or not isinstance(names, list) or not isinstance(before, list):
            return None
        return set(map(str, names)), set(map(str, before))


def _mapped_by(pids: Iterable[int]) -> set[int]:
    """Give the inodes in /dev/shm that any of these processes maps; those of other users cannot be seen."""
    inodes: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
            inodes |= set(map(int, _MAPPED.findall(maps)))
    return inodes


def _own_files() -> dict[str, int]:
    """Give the plain files of this user in /dev/shm by name, with their inodes."""
    files = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(SHM):
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False) and entry.stat().st_uid == os.getuid():
                    files[entry.name] = entry.inode()
    return files
