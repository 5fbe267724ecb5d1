"""How a process ended, in words."""

from __future__ import annotations

import signal


def describe_end(returncode: int) -> str:
    """Say in words how a process ended, from its return code as `subprocess` gives it."""
    if returncode < 0:
        return f"was killed by {_signal_name(-returncode)}"
    return f"ended with exit code {returncode}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
