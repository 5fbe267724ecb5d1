"""Rendered files, and writing them so that a reader sees all of the new ones or the old ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import OutputError

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600


@dataclass(frozen=True, slots=True)
class File:
    """One rendered file: where it goes, its whole text, its mode."""

    path: Path
    text: str
    mode: int = PRIVATE_FILE


def make_directories(directories: Iterable[Path]) -> None:
    """Make directories that only their owner may enter; raises `OutputError` naming the one that can't be."""
    for directory in directories:
        try:
            directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
            if directory.stat().st_uid != os.geteuid():
                raise OutputError(f"{directory} belongs to somebody else: choose another --out")
            directory.chmod(PRIVATE_DIRECTORY)
        except OSError as error:
            raise OutputError(f"{directory} cannot be made: {error.strerror}") from None


def write_files(files: Iterable[File]) -> None:
    """Write every file beside its place first and move them in only when all of them are on disk.

    What was written is there after a power cut, too, once this returns. Raises `OutputError`; then nothing is
    left beside.
    """
    waiting: list[tuple[Path, Path]] = []
    directories: set[Path] = set()
    target = Path()
    try:
        for file in files:
            target = file.path
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            waiting.append((temporary, target))
            _write(file, temporary)
        while waiting:
            temporary, target = waiting[0]
            temporary.replace(target)
            directories.add(target.parent)
            waiting.pop(0)
        for target in sorted(directories):
            _sync(target)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)


def shown(path: Path) -> Path:
    """Show a path the way the user would type it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # the working directory was removed
        return path
    return path.relative_to(here) if path.is_relative_to(here) else path


def _write(file: File, path: Path) -> None:
    """Write a file of that name afresh, to the disk, with its mode from the first moment."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(file.text)
        stream.flush()
        os.fchmod(stream.fileno(), file.mode)
        os.fsync(stream.fileno())


def _sync(directory: Path) -> None:
    """Bring the names in a directory to the disk: without its name a file is lost, whatever it holds."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot do it for directories
            raise
    finally:
        os.close(descriptor)
