"""A request as the proxy notes it, one JSON object a line, for people."""

from __future__ import annotations

import json
from typing import Any

# What comes first, without its name; the rest follows as `name=value`.
_FIRST = ("time", "method", "route", "status")


def request_of(text: str) -> dict[str, Any] | None:
    """Read a line; None if it is no JSON object, as a line that a killed proxy did not end."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def in_words(text: str) -> str:
    """Say a request in one line; what is no request stays as it is."""
    told = request_of(text)
    if told is None:
        return text
    first = [str(told[name]) for name in _FIRST if told.get(name) is not None]
    rest = [
        f"{name}={_shown(value)}"
        for name, value in told.items()
        if name not in _FIRST and value not in (None, "")
    ]
    return " ".join([*first, *rest])


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
