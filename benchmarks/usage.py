"""CPU time and memory of a process and everything below it, from /proc."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def tree(pid: int) -> list[psutil.Process]:
    """Give a process and all its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_seconds(pid: int) -> float:
    """Give user and system time of the whole tree; a child that has ended counts in its parent."""
    total = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def memory_kb(pid: int) -> float:
    """Give the PSS of the whole tree in kB: resident memory, shared pages divided by their sharers."""
    total = 0
    for process in tree(pid):
        found = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        total += int(found[1]) if found else 0
    return float(total)
