"""Sizes of memory and disks, and how they are shown."""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


def gib(size: int) -> str:
    """Show bytes in GiB, with as many digits as tell something."""
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / MIB:.0f} MiB"
