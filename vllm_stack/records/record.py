"""Small JSON records that one life of a program leaves for the next, or for a person to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_record(path: Path, fields: dict[str, Any]) -> None:
    """Write a record, whole or not at all, for its owner alone; raises `OSError`.

    Not flushed to the disk, unlike rendered files: a slow one must not hold up a start or an end.
    """
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(fields, stream, indent=2)
    temporary.replace(path)


def read_record(path: Path) -> dict[str, Any]:
    """Give the fields of a record; a missing or damaged one has none."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
