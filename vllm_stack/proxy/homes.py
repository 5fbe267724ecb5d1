"""Which worker has a routing key's prefix in its cache: a small memory that all processes share.

Anonymous memory made in gunicorn's master before it forks, like the scoreboard, so that whatever
process gets the next turn of a conversation knows where the last one went. It is a hint and
nothing more: a slot holds one key, a newer key takes it over, and a proxy that starts knows none.
"""

from __future__ import annotations

import mmap

_SLOT_BITS = 16  # 65,536 keys, 512 KiB, touched only as they are used
_CELL = 8  # bytes


class Homes:
    """A table from 64-bit keys to the indices of workers."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, (1 << _SLOT_BITS) * _CELL)
        # No lock: a slot is one aligned 8-byte store, and of two processes that write, one wins.
        self._cells = memoryview(self._memory).cast("Q")

    def get(self, key: int) -> int | None:
        """Give the worker that was put for `key`, None if that is not, or no longer, known."""
        cell: int = self._cells[key & (1 << _SLOT_BITS) - 1]
        # The low bits of a cell are the worker plus one, the others those of the key that do not
        # already tell the slot.
        if cell >> _SLOT_BITS != key >> _SLOT_BITS or not cell & (1 << _SLOT_BITS) - 1:
            return None
        return (cell & (1 << _SLOT_BITS) - 1) - 1

    def put(self, key: int, worker: int) -> None:
        self._cells[key & (1 << _SLOT_BITS) - 1] = key >> _SLOT_BITS << _SLOT_BITS | worker + 1
