"""A body that is too large to be held, on its way from a client to one worker.

What is held of it when it begins goes first, then every piece as it comes: no more than a read is
in memory, and a worker that takes nothing keeps the client waiting. It can be sent only once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from gevent import getcurrent

from vllm_stack.proxy.channel import READ_SIZE
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.upstream import Upstream


class _AnswerCame(Exception):
    """The worker did not wait for the end of the body."""


class Upload:
    """One such body; `read_more` has the client's next bytes added to the request."""

    __slots__ = ("_answer", "_greenlet", "_read_more", "_request")

    def __init__(self, request: Request, read_more: Callable[[Request], None]) -> None:
        self._request = request
        self._read_more = read_more
        self._answer: bytes | None = None
        # The greenlet that may be interrupted.
        self._greenlet: Any = None

    def run(self, upstream: Upstream) -> bytes | None:
        """Send it all, and give None; or what the worker said before that, empty if it hung up.

        Raises `Refusal` for what is wrong with the rest of the body, and if it does not come in time.
        """
        self._greenlet = getcurrent()
        upstream.consume(self._on_answer, inf)
        try:
            self._pump(upstream)
        except _AnswerCame:
            pass
        except OSError:
            if self._answer is None:
                self._answer = _last_words(upstream)
        finally:
            self._greenlet = None
            upstream.release()
        return self._answer

    def _pump(self, upstream: Upstream) -> None:
        request = self._request
        while True:
            piece = request.take_body()
            if request.length is None:
                piece = b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b""
                if request.complete:
                    piece += b"0\r\n\r\n"
            upstream.send(piece)
            if request.complete:
                return
            self._read_more(request)

    def _on_answer(self, data: bytes | None) -> None:
        """Stop: a worker that answers now has no use for the rest (RFC 9112 section 9.5)."""
        self._answer = data
        if self._greenlet is not None:
            self._greenlet.throw(_AnswerCame)


def _last_words(upstream: Upstream) -> bytes:
    """Give what a worker said that takes no more: it may have answered before it hung up."""
    try:
        return upstream.raw.recv(READ_SIZE)
    except OSError:
        return b""
