"""Three ways to see what is left of a program, none of which relies on another.

A process that hides from one of them is seen by the next: an engine renames itself and leaves the
process group, but stays in its directory; what left both may still hold the port.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import find_by_directory, is_alive, listeners

_LISTEN = "0A"  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What to look for: a program's directory, the beginning of its titles, and its ports."""

    directory: Path
    title: str
    ports: tuple[int, ...]

    def see(
        self, groups: Collection[int], spared: Callable[[], Collection[int]] = frozenset
    ) -> dict[str, list[str]]:
        """Give what each witness sees, {} if none sees anything.

        `groups` are the process groups the program had; `spared` gives who may be there, and is asked
        after the looking: a process that is born meanwhile is then among them.
        """
        seen = {
            "identity": self.by_identity(),
            "group": by_group(groups),
            "port": [pid for port in self.ports for pid in by_port(port)],
        }
        allowed = spared()
        told = {
            name: [f"{pid} {words(pid)[:80]}" for pid in pids if pid not in allowed]
            for name, pids in seen.items()
        }
        return {name: lines for name, lines in told.items() if lines}

    def by_identity(self) -> list[int]:
        """Look for the directory and the title."""
        return [process.pid for process in find_by_directory(self.directory, self.title)]


def by_group(groups: Collection[int]) -> list[int]:
    """Look for living members of process groups."""
    return [pid for pid in _pids() if group_of(pid) in groups and is_alive(pid)]


def by_port(port: int) -> list[int]:
    """Look for who listens on a TCP port; 0 stands for somebody who cannot be named."""
    return [pid or 0 for pid in listeners(port)] if listens(port) else []


def listens(port: int) -> bool:
    """Tell whether anybody listens on a TCP port, on any address; asked of the kernel, not of the port."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text("ascii").splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == _LISTEN and int(local.rpartition(":")[2], 16) == port:
                return True
    return False


def group_of(pid: int) -> int:
    """Give the process group, 0 for a process that is gone."""
    try:
        return os.getpgid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def words(pid: int) -> str:
    """Give the command line, or what the process wrote over it; "" for one that is gone."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return text.replace(b"\0", b" ").decode(errors="replace").strip()


def children(pid: int) -> list[int]:
    """Give the children of a process, oldest first; [] for one that is gone.

    From the one file that the kernel has for it: it is asked every few milliseconds.
    """
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        lines = [Path(f"/proc/{pid}/task/{task}/children").read_text("ascii") for task in tasks]
    except OSError:
        return []
    return sorted(int(child) for line in lines for child in line.split())


def family(pid: int) -> set[int]:
    """Give a process and all its descendants."""
    return {pid, *(below for child in children(pid) for below in family(child))}


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())
