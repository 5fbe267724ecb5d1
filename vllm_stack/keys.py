"""API keys at rest: files only the owner can read, client keys as hashes, never in an argv."""

from __future__ import annotations

import hashlib
import secrets
import stat
from pathlib import Path

from vllm_stack.errors import UsageError


def new_key() -> str:
    """Make a random key for the way from the proxy to the workers."""
    return secrets.token_urlsafe(32)


def hash_key(key: bytes) -> bytes:
    """Hash a client key; what is compared and stored is only ever this digest."""
    return hashlib.sha256(key).digest()


def read_key_file(path: Path, option: str = "--api-key-file") -> tuple[str, ...]:
    """Read keys, one per line; empty lines and lines that start with `#` do not count.

    Raises `UsageError` when the file is missing, empty, or readable by anyone but its owner; the
    message names the option it was given with.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{option} {path} cannot be read: {error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(f"{option} {path} can be read by others: chmod 600 {path}")
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{option} {path} holds no key")
    return keys


def check_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse keys that no HTTP header can carry; gives them back without doubles, in order."""
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or key != key.strip():
            raise UsageError(
                "An API key must be printable ASCII without spaces around it, and not empty "
                "(the key itself is not shown here)"
            )
    return tuple(dict.fromkeys(keys))
