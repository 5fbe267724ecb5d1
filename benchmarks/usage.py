"""CPU time and memory of a process and everything below it, from /proc."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def tree(pid: int) -> list[psutil.Process]:
    """Give a process and all its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_by_process(pid: int) -> dict[int, float]:
    """Give user and system time, in seconds, of every process of the tree.

    A child that has ended counts in its parent.
    """
    seconds = {}
    for process in tree(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            seconds[process.pid] = sum(process.cpu_times()[:4])
    return seconds


def memory_kb(pid: int) -> float:
    """Give the PSS of the whole tree in kB: resident memory, shared pages divided by their sharers."""
    total = 0
    for process in tree(pid):
        found = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
        total += int(found[1]) if found else 0
    return float(total)
