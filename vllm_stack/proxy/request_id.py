"""Names for requests that brought none: they cannot be guessed, and cost no system call each.

vLLM builds its own ids from them, and who knows the id of a stored answer can ask for it.
"""

from __future__ import annotations

import os

_BYTES = 16
_AT_ONCE = 256

_fresh: list[bytes] = []


def new_id() -> bytes:
    """Give 32 hexadecimal digits of the system's randomness."""
    if not _fresh:
        pool = os.urandom(_BYTES * _AT_ONCE).hex().encode()
        _fresh.extend(pool[start : start + 2 * _BYTES] for start in range(0, len(pool), 2 * _BYTES))
    return _fresh.pop()
