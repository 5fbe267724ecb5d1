"""Which rendered options a running program goes by, whatever has been rendered since.

supervisord tells every program the fingerprint of the options it was configured with. A program
keeps a copy of the options it first started with under that fingerprint; after a crash it goes by
the copy, so a render into the directory of a running stack changes nothing until supervisord
itself is told (`supervisorctl update`, or a new start).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

VARIABLE = "VLLM_STACK_OPTIONS"


def fingerprint(texts: Iterable[bytes]) -> str:
    """Give a short name for exactly these texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:16]


def options_in_force(files: Sequence[Path], state: Path, name: str, wanted: str | None) -> list[Path]:
    """Give the files that hold the options `wanted` by supervisord: kept copies, made at the first start.

    Without `wanted` (a program run by hand), or when nothing was kept for it, the rendered files
    themselves are the options in force. Raises `OSError` when a file cannot be read.
    """
    if wanted is None:
        return list(files)
    kept = state / f"{name}.{wanted}"
    copies = [kept / file.name for file in files]
    if not kept.is_dir():
        if fingerprint(file.read_bytes() for file in files) != wanted:
            return list(files)
        _keep(files, kept)
        _forget_others(state, name, kept)
    return copies


def _keep(files: Sequence[Path], kept: Path) -> None:
    unfinished = kept.with_name(kept.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    for file in files:
        shutil.copy2(file, unfinished / file.name)
    unfinished.rename(kept)


def _forget_others(state: Path, name: str, kept: Path) -> None:
    for other in state.glob(f"{name}.*"):
        if other.is_dir() and other != kept:
            shutil.rmtree(other, ignore_errors=True)
