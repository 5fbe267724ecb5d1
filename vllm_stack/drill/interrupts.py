"""Ctrl-C and its like: the first one ends the drill, and what follows must not keep it from tidying up."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def ending_once() -> Iterator[None]:
    """Turn the first Ctrl-C, TERM or HUP into `KeyboardInterrupt`, and ignore all later ones.

    What is done on the way out is bounded in time. A signal that was ignored before stays so (nohup).
    """
    before = {signum: signal.getsignal(signum) for signum in _ENDINGS}
    heeded = [signum for signum, handler in before.items() if handler is not signal.SIG_IGN]

    def end(signum: int, frame: FrameType | None) -> None:
        for other in heeded:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for signum in heeded:
        signal.signal(signum, end)
    try:
        yield
    finally:
        for signum in heeded:
            signal.signal(signum, before[signum])
