"""What wrk says, and whether all of it went well."""

from __future__ import annotations

import json

_ERRORS = {
    "status": "answers other than 2xx",
    "connect": "failed connects",
    "read": "broken reads",
    "write": "broken writes",
    "timeout": "timeouts",
}


def parse_line(output: str) -> dict[str, float]:
    """Read the line of JSON that post.lua writes last; `ValueError` if there is none."""
    lines = output.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise ValueError(f"wrk did not come to its end: {output[-500:]!r}")
    said: dict[str, float] = json.loads(lines[-1])
    return said


def faults_of(said: dict[str, float]) -> str | None:
    """Say what went wrong, in words; None if nothing did."""
    words = [f"{said[name]:.0f} {what}" for name, what in _ERRORS.items() if said[name]]
    return f"{', '.join(words)} of {said['requests']:.0f} requests" if words else None
