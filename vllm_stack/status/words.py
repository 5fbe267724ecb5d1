"""Numbers as a table has room for them; what nobody knows is a dash."""

from __future__ import annotations

from vllm_stack.sizes import GIB

UNKNOWN = "-"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def duration(seconds: float) -> str:
    """Show seconds in the largest unit that has two digits, or nearly."""
    seconds = max(0.0, seconds)
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def rate(value: float | None) -> str:
    """Show how many a second."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    if value < 9.95:
        return f"{value:.1f}"
    return f"{value:.0f}" if value < 9999.5 else f"{value / 1000:.0f}k"


def share(value: float | None) -> str:
    """Show a share (0 to 1) in percent."""
    return UNKNOWN if value is None else f"{value:.0%}"


def number(value: float | None) -> str:
    """Show a count."""
    return UNKNOWN if value is None else str(value)


def milliseconds(seconds: float | None) -> str:
    """Show a short time, in ms up to a second."""
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def memory(used: int, total: int) -> str:
    """Show bytes of bytes, in GiB."""
    return f"{used / GIB:.1f}/{total / GIB:.1f} GiB"


def amount(count: int, what: str) -> str:
    """Show so many of something."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
