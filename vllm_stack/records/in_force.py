"""Which rendered options a running program goes by, whatever has been rendered since.

supervisord tells every program the fingerprint of the options it was configured with. A program
keeps a copy of the options it first started with under that fingerprint; after a crash it goes by
the copy, so a render into the directory of a running stack changes nothing until supervisord
itself is told (`supervisorctl update`, or a new start), or a roll has the program adopt it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vllm_stack.process_identity import birth
from vllm_stack.records.record import read_record, write_record

VARIABLE = "VLLM_STACK_OPTIONS"


def fingerprint(texts: Iterable[bytes]) -> str:
    """Give a short name for exactly these texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text)
    return digest.hexdigest()[:16]


def fingerprint_of(files: Iterable[Path]) -> str:
    """Give the short name of what is in these files; raises `OSError`."""
    return fingerprint(file.read_bytes() for file in files)


def options_in_force(files: Sequence[Path], state: Path, name: str, wanted: str | None) -> list[Path]:
    """Give the files that hold the options `wanted` by supervisord, or adopted since (`adopt`).

    They are kept copies, made at the first start. Without `wanted` (a program run by hand), or when
    nothing was kept for it, the rendered files themselves are the options in force. Raises `OSError`
    when a file cannot be read.
    """
    if wanted is None:
        return list(files)
    adopted = _read_adoption(state, name, os.getppid())
    if adopted is not None and wanted in adopted.instead_of:
        wanted = adopted.fingerprint
    kept = state / f"{name}.{wanted}"
    if not kept.is_dir():
        if fingerprint_of(files) != wanted:
            _link(state, name).unlink(missing_ok=True)
            return list(files)
        _keep(files, kept)
    _point(state, name, kept)
    _forget_others(state, name, kept)
    return [_link(state, name) / file.name for file in files]


def kept_options(state: Path, name: str) -> Path | None:
    """Give the directory with the options that a program goes by; None before its first start."""
    link = _link(state, name)
    return link if link.is_dir() else None


def adopt(files: Sequence[Path], state: Path, name: str, supervisord: int) -> bool:
    """Have a program go by the rendered `files` from its next start, or reload, on; False if it does.

    `supervisord` is the process id of the one that runs it: another one tells its programs what was
    rendered by then. Raises `OSError`, and `psutil.Error` if it has ended.
    """
    kept = kept_options(state, name)
    if kept is None:
        return True  # nothing was kept, so it goes by what is rendered
    before, fresh = os.readlink(kept).removeprefix(f"{name}."), fingerprint_of(files)
    if before == fresh:
        return False
    adopted = _read_adoption(state, name, supervisord)
    replaced = {before, *(adopted.instead_of if adopted is not None else ())} - {fresh}
    _keep(files, state / f"{name}.{fresh}")
    fields = {"under": birth(supervisord), "instead_of": sorted(replaced), "fingerprint": fresh}
    write_record(_adoption(state, name), fields)
    _point(state, name, state / f"{name}.{fresh}")
    return True


@dataclass(frozen=True, slots=True)
class _Adoption:
    """What a program goes by, whichever of `instead_of` supervisord tells it."""

    instead_of: frozenset[str]
    fingerprint: str


def _read_adoption(state: Path, name: str, supervisord: int) -> _Adoption | None:
    fields = read_record(_adoption(state, name))
    try:
        if fields["under"] != birth(supervisord):
            return None
        return _Adoption(frozenset(fields["instead_of"]), str(fields["fingerprint"]))
    except (KeyError, TypeError, psutil.Error):
        return None


def _adoption(state: Path, name: str) -> Path:
    return state / f"{name}.adopted.json"


def _link(state: Path, name: str) -> Path:
    """Name the way to the copies in force that stays the same, whichever they are."""
    return state / f"{name}.in-force"


def _point(state: Path, name: str, kept: Path) -> None:
    link = _link(state, name)
    fresh = link.with_name(link.name + ".new")  # `record` has a name without the last suffix for others
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(kept.name)
    fresh.replace(link)


def _keep(files: Sequence[Path], kept: Path) -> None:
    if kept.is_dir():
        return
    unfinished = kept.with_name(kept.name + ".new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    for file in files:
        shutil.copy2(file, unfinished / file.name)
    unfinished.rename(kept)


def _forget_others(state: Path, name: str, kept: Path) -> None:
    for other in state.glob(f"{name}.*"):
        if other.is_dir() and not other.is_symlink() and other != kept:
            shutil.rmtree(other, ignore_errors=True)
