"""The file of named keys on the disk: read where only its owner can, and changed by one at a time."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import NoStack, StackError
from vllm_stack.files import File, write_files
from vllm_stack.keys.named import KeyFile, decode, encode
from vllm_stack.regular_file import open_regular, read_at_most
from vllm_stack.sizes import MIB

# The most (bytes) of the file: as many keys as there can be, each rotated a few times, take half of it.
_MOST = 16 * MIB
# Seconds that a verb waits for another one, and between two looks.
_PATIENCE = 10.0
_LOOK = 0.05
_MARK = (
    "A named key was made for this stack, so its door asks for keys, also when no named key is left or the\n"
    "file of them is gone. For a door that takes any key again: stop the stack, remove this file and\n"
    "keys.json, and start it.\n"
)


class Unreadable(StackError):
    """The file cannot be read now: it may be later, although nothing of it changes."""


@dataclass(frozen=True, slots=True)
class KeyPaths:
    """Where the named keys are."""

    file: Path

    @property
    def mark(self) -> Path:
        """What tells a stack that never had any from one whose file was lost."""
        return self.file.with_name("keys-required")

    @property
    def in_use(self) -> bool:
        """Named keys were made here: the door asks for keys, whatever has become of them since."""
        return os.path.lexists(self.file) or os.path.lexists(self.mark)


# What tells one version of the file from another.
Version = tuple[int, ...]


def version_of(path: Path) -> Version | None:
    """Tell which version of the file is there; None if there is none, or it cannot be seen."""
    try:
        return _version(os.stat(path))
    except OSError:
        return None


def read_keys(path: Path) -> tuple[KeyFile, Version]:
    """Read the file, and tell which version that was.

    Raises `FileNotFoundError` if there is none, `Unreadable` if it cannot be read, and `StackError` if
    others can read it, or it is damaged.
    """
    try:
        with open_regular(path) as stream:
            status = os.fstat(stream.fileno())
            if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StackError(f"{path} can be read by others: chmod 600 {path}")
            return decode(read_at_most(stream, path, _MOST)), _version(status)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise StackError(f"{path} is damaged: {error}") from None


def present_keys(paths: KeyPaths) -> KeyFile:
    """Read the file; where there is none there are no keys. Raises `StackError` as `read_keys`."""
    try:
        return read_keys(paths.file)[0]
    except FileNotFoundError:
        return KeyFile()


def change_keys(paths: KeyPaths, change: Callable[[KeyFile], KeyFile]) -> KeyFile:
    """Change the file, whole or not at all, while nobody else does; gives the new one.

    Raises what `change` raises, `NoStack` where there is no stack, and `StackError` for a file that cannot
    be read or written; then all is as it was.
    """
    with _locked(paths.file.parent):
        changed = change(present_keys(paths))
        write_files([File(paths.file, encode(changed)), File(paths.mark, _MARK)])
    return changed


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other verbs out; the kernel lets them in when this process ends, however it ends."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NoStack(
            f"{directory} cannot be opened ({error.strerror}): run `vllm-stack render` first, or name the "
            "stack with --out"
        ) from None
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StackError("Another `vllm-stack keys` changes the keys of this stack: try again")
            time.sleep(_LOOK)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system that has no locks
        raise StackError(f"The keys cannot be locked: {error.strerror}") from None
    return True


def _version(status: os.stat_result) -> Version:
    return status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size
