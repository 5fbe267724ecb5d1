"""API keys at rest: files only the owner can read, client keys as hashes, never in an argv."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from vllm_stack.errors import UsageError
from vllm_stack.given import expanded
from vllm_stack.regular_file import MOST_KEYS, open_regular, read_at_most


def new_key() -> str:
    """Make a random key for the way from the proxy to the workers."""
    return secrets.token_urlsafe(32)


def new_client_key() -> str:
    """Make a random key for a client: 256 bits, behind a prefix by which scanners for secrets can know it."""
    return f"sk-vs-{secrets.token_urlsafe(32)}"


def hash_key(key: bytes) -> bytes:
    """Hash a client key; what is compared and stored is only ever this digest."""
    return hashlib.sha256(key).digest()


def read_key_file(path: Path, option: str = "--api-key-file") -> tuple[str, ...]:
    """Read keys, one per line; empty lines and lines that start with `#` do not count.

    A pipe of the shell (`<(...)`, /dev/stdin) is read to its end. Raises `UsageError` when the file is
    missing, empty, neither a file nor such a pipe, or readable by anyone but its owner; the message
    names the option it was given with.
    """
    path = expanded(path)
    try:
        with open_regular(path, or_pipe=True) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = read_at_most(stream, path, MOST_KEYS).decode("utf-8")
    except UnicodeDecodeError:
        # Not the error's own words: they would show what is in the file.
        raise UsageError(f"{option} {path} cannot be read: it is not text in UTF-8") from None
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
