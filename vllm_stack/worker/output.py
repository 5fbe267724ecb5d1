"""The last words of a server, read from the log that supervisord writes.

vLLM writes into supervisord's pipe, not ours: a wrapper in between would cost CPU, and could block
the server. Our own lines go the same way, after everything the server said before them. So once
our line stands in the log, all that is above it has been said.
"""

from __future__ import annotations

import time
from pathlib import Path

from vllm_stack.log_tail import last_lines

PATIENCE = 2.0  # seconds for supervisord to write down what is in the pipe
KEPT = 400  # lines that are looked through for a cause
_TICK = 0.02


def last_words(log: Path, begin: str | None, end: str | None) -> list[str]:
    """Give the last lines between two of our own, `begin` and `end`, newest last.

    Either may be missing, because the log was rotated or nobody writes it; after `PATIENCE` seconds
    without `end` the answer is what there is, and nothing at all if it is older than `begin`.
    """
    if end is None:
        return []
    deadline = time.monotonic() + PATIENCE
    while (last := _last_index(lines := last_lines(log, KEPT), end)) is None:
        if time.monotonic() > deadline:
            return []
        time.sleep(_TICK)
    first = _last_index(lines, begin) if begin else None
    return lines[0 if first is None else first + 1 : last]


def _last_index(lines: list[str], ours: str) -> int | None:
    """Find a line of ours; the server may have broken off in the middle of the one before."""
    found = (index for index in range(len(lines) - 1, -1, -1) if lines[index].endswith(ours))
    return next(found, None)
