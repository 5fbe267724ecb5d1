"""Paths and words as a user gives them: what no program can make sense of is refused before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from vllm_stack.errors import StackError, UsageError


def expanded(path: str | Path) -> Path:
    """Put the home directory for a leading `~`; raises `UsageError` where nobody tells which one that is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{str(path)!r} begins with a home directory that this machine does not know: write the path out"
        ) from None


def absolute(path: str | Path) -> Path:
    """Make a path absolute, after `expanded`.

    Raises `StackError` for a relative one where the working directory was removed.
    """
    target = expanded(path)
    try:
        return target.absolute()
    except FileNotFoundError:
        raise StackError(
            f"{str(path)!r} is a relative path, and the working directory is gone: "
            "change to one that is there, or write the path out"
        ) from None


def check_text(option: str, value: object) -> None:
    """Raise `UsageError` if a value, or one of several, holds bytes that are no UTF-8.

    Python hands them on as lone surrogates (PEP 383), which no file of ours and no HTTP request can carry.
    """
    for text in _texts(value):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(f"{option}: {text!a} is not text in UTF-8") from None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, Iterable):
        for part in value:
            yield from _texts(part)
