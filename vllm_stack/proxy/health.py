"""Asking the workers how they are: often while they are out, now and then while they are in.

The question goes over a connection that stays open: when a worker dies, the kernel closes it, and
the proxy knows within milliseconds instead of at the next tick. A server elsewhere is asked on a
connection of its own each time: how long it keeps idle ones is not ours to set.
"""

from __future__ import annotations

from collections.abc import Sequence

import gevent

from vllm_stack.proxy import via
from vllm_stack.proxy.answer_head import read_answer
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.failures import BadAnswer
from vllm_stack.proxy.upstream import Pool, Upstream

# Seconds. A worker that is out is looked at often: its return is what clients wait for.
INTERVAL_OUT = 0.5
INTERVAL_IN = 2.0
TIMEOUT = 5.0
# A stopping worker waits `worker.life.NOTICE` seconds after its notice: more than two of these.
NOTICE_INTERVAL = 0.2
# A busy server may be slow to answer (long prompts are tokenised on its event loop): one late
# answer is no illness. Only a refused or broken connection, or a 503, counts at once.
LATE_ANSWERS = 3
# What is said of a server that is well, and gets nothing because an operator ordered so.
DRAINED = "drained"

_QUESTION = b"GET %s HTTP/1.1\r\nhost: %s\r\n%s\r\n"


def watch(backend: Backend) -> None:
    """Keep `backend.ready` true to what its /health says; runs for ever, one greenlet a worker."""
    late = 0
    line = _Line(backend)
    while True:
        backend.look.clear()
        state = _with_orders(backend, line.ask())
        late = late + 1 if state == "late" else 0
        if state != "late" or late >= LATE_ANSWERS or not backend.ready:
            backend.mark(state == "ready", state)
        line.wait(INTERVAL_IN if backend.ready else INTERVAL_OUT)


def watch_notices(backends: Sequence[Backend]) -> None:
    """Take a worker that announces its stop, or is to be drained, out of the choice at once; for ever."""
    while True:
        for backend in backends:
            if backend.ready and backend.is_stopping():
                backend.suspect("stopping")
            elif backend.is_drained():
                if backend.ready:
                    backend.suspect(DRAINED)
            elif backend.state == DRAINED:
                backend.look.set()
        gevent.sleep(NOTICE_INTERVAL)


def _with_orders(backend: Backend, state: str) -> str:
    """Say what a server's answer means beside what it was told."""
    if backend.is_stopping():
        return "stopping" if state == "ready" else "stopped"
    return DRAINED if state == "ready" and backend.is_drained() else state


class _Line:
    """The connection that one worker is asked over."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._look = backend.look
        self._once = backend.remote
        self._question = _QUESTION % (
            backend.health,
            backend.host or b"worker",
            via.LINE if backend.remote else b"",
        )
        self._pool = Pool(backend.address, max_idle=0.0)
        self._upstream: Upstream | None = None

    def ask(self) -> str:
        """Ask once and say in a word what came: ready, ill, late, or not listening."""
        try:
            if self._upstream is None:
                self._upstream = self._pool.connect()
        except OSError:
            return "not listening"
        try:
            with gevent.Timeout(TIMEOUT, TimeoutError("The worker's health was not told in time")):
                status = self._status(self._upstream)
        except TimeoutError:
            self._hang_up()
            return "late"
        except (OSError, BadAnswer):
            self._hang_up()
            return "not listening"
        return "ready" if status == 200 else "ill"

    def wait(self, seconds: float) -> None:
        """Wait for the next time to ask: after `seconds`, when told to look, or when the line breaks."""
        if self._upstream is None:
            self._look.wait(seconds)
            return
        self._upstream.consume(self._on_break, 2 * seconds)
        self._look.wait(seconds)
        if self._upstream is not None:
            self._upstream.release()

    def _on_break(self, data: bytes | None) -> None:
        """Nothing was asked, so whatever comes is the end of the line, and of the worker until it answers.

        A connect that succeeds is no answer: an engine that was forked holds the listening socket,
        and the kernel accepts for it after the server's death.
        """
        self._hang_up()
        self._backend.suspect("not listening")

    def _status(self, upstream: Upstream) -> int:
        upstream.send(self._question)
        data = upstream.receive(2 * TIMEOUT)
        while (read := read_answer(data)) is None:
            data += _more(upstream)
        answer, size = read
        left = (answer.length or 0) - (len(data) - size)
        while left > 0:
            left -= len(_more(upstream))
        if self._once or left != 0 or answer.length is None or not answer.head.keeps_alive:
            self._hang_up()
        return answer.head.status

    def _hang_up(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
            self._upstream = None


def _more(upstream: Upstream) -> bytes:
    data = upstream.receive(2 * TIMEOUT)
    if not data:
        raise BadAnswer("The worker gave no answer about its health")
    return data
