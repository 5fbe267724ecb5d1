"""A process told from any other that ever has its number."""

from __future__ import annotations

import psutil


def birth(pid: int) -> list[float]:
    """Give its number and when it began; raises `psutil.NoSuchProcess`."""
    return [pid, psutil.Process(pid).create_time()]
