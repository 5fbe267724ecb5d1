"""What a vLLM answered when it was asked for its options, kept from one command to the next."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vllm_stack.errors import OutputError
from vllm_stack.files import PRIVATE_DIRECTORY, File, write_files

# An answer is kept for as long as the program stays the same. Without a version nothing tells
# that the vLLM behind a wrapper was replaced, and who did not answer may do so another day.
_UNSURE_SECONDS = 24 * 3600.0
_OPTION = re.compile(r"--?[A-Za-z0-9][\w-]*", re.ASCII)


def cache_directory(environ: Mapping[str, str]) -> Path:
    """Give the directory that keeps answers from one command to the next (XDG base directories)."""
    # The specification has a relative path ignored; a user without a home keeps nothing.
    homes = (environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache"), os.devnull)
    return Path(next(home for home in homes if home.startswith("/"))) / "vllm-stack"


def kept_file(directory: Path, argv: Sequence[str], version: str | None) -> Path:
    """Name the file for exactly this program: its words, its version, and when its files were written."""
    times = [_written(Path(word)) for word in argv]
    name = hashlib.sha256(json.dumps([list(argv), version, times]).encode()).hexdigest()
    return directory / f"vllm-options-{name[:16]}.json"


def _written(path: Path) -> int | None:
    """Give the time of a file's last change (ns); None for a word that is no path of a file."""
    try:
        return path.stat().st_mtime_ns if path.is_absolute() else None
    except (OSError, ValueError):
        return None


def recall(kept: Path, sure: bool) -> frozenset[str] | None:
    """Read a kept answer (empty: the program gave none); None for one that is too old or damaged."""
    try:
        options = json.loads(kept.read_bytes())["options"]
        age = time.time() - kept.stat().st_mtime
        words = frozenset(word for word in options if _OPTION.fullmatch(word))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    intact = isinstance(options, list) and len(words) == len(options)
    return words if intact and ((sure and words) or age < _UNSURE_SECONDS) else None


def keep(kept: Path, options: frozenset[str]) -> None:
    try:
        kept.parent.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        write_files([File(kept, json.dumps({"options": sorted(options)}) + "\n")])
    except (OSError, OutputError):
        # Then it is asked again next time.
        return
