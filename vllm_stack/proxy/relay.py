"""Streaming one answer from a worker to a client, without waking a greenlet for every event.

What arrives from the worker is written to the client in the hub's callback; the request's greenlet
sleeps until the answer has ended one way or another. Only when the client's socket is full does
the greenlet take over: nothing is read meanwhile, so memory stays bounded, and a client that takes
nothing is dropped.

Of what comes nearly all is whole events in whole chunks, and nothing is to be decided: there the part
in C (`native`) stands in for the callback, and gives it the rest.
"""

from __future__ import annotations

from time import monotonic

from gevent import get_hub, getcurrent

from vllm_stack.native import PUMP
from vllm_stack.proxy.failures import Broken, ClientGone, Silent
from vllm_stack.proxy.framing import ABORT, Framing
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.upstream import Upstream


class Relay:
    """One body on its way. Raises `UpstreamFailure` or `ClientGone` from `run`."""

    __slots__ = (
        "_failure",
        "_feed",
        "_framing",
        "_peer",
        "_pump",
        "_sender",
        "_silence",
        "_unsent",
        "_upstream",
        "_wake",
        "sent",
    )

    def __init__(self, peer: Peer, upstream: Upstream, framing: Framing, silence: float) -> None:
        self._peer = peer
        self._sender = peer.raw.send
        self._upstream = upstream
        self._framing = framing
        self._feed = framing.feed
        self._silence = silence
        self._wake = getcurrent().switch
        self._unsent = b""
        self._failure: Exception | None = None
        self.sent = False
        self._pump = None
        if PUMP is not None and not peer.secure:
            source, sink = upstream.raw.fileno(), peer.raw.fileno()
            self._pump = PUMP(source, sink, ABORT, upstream.took, self._on_stall)

    def run(self, first: bytes, head: bytes) -> None:
        """Send `head` and what is there of the body, then all that follows, until its end."""
        try:
            self._run(first, head)
        finally:
            if self._pump is not None:
                self._peer.sent += int(self._pump.passed)
            self._pump = None  # which holds us: nothing is to wait for the garbage collector

    def _run(self, first: bytes, head: bytes) -> None:
        out = self._feed(first) if first else b""
        self._failure = self._framing.failure
        if out or self._failure is None:
            self.sent = True
            self._peer.send(head + out)
        self._raise_failure()
        while not self._framing.done:
            self._sleep()

    def _sleep(self) -> None:
        """Let the hub work until something needs the greenlet."""
        self._upstream.consume(self._on_data, self._silence)
        if self._pump is not None:
            self._pump.straight = self._framing.straight
            self._upstream.shortcut(self._pump)
        try:
            get_hub().switch()
        finally:
            self._upstream.shortcut(None)
            self._upstream.release()
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._peer.send_rest(unsent)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _on_stall(self, unsent: bytes) -> None:
        """Leave to the greenlet what the client did not take of what the pump sent."""
        self._unsent = unsent
        self._wake()

    def _on_data(self, data: bytes | None) -> None:
        """Move what came; runs in the hub, once for every token, and must neither block nor raise."""
        pump = self._pump
        if data is None and pump is not None and (left := pump.moved + self._silence - monotonic()) > 0:
            self._upstream.consume(self._on_data, left)
            return
        try:
            out = self._feed(data) if data else self._end(data)
            sent = self._sender(out) if out else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._failure = ClientGone()
            self._wake()
            return
        except Exception as failure:  # a bug of ours too: in the hub the client would hang
            self._failure = failure
            self._wake()
            return
        self._peer.sent += sent
        framing = self._framing
        if sent < len(out) or framing.done or framing.failure is not None:
            self._unsent = out[sent:]
            self._failure = framing.failure
            self._wake()
        else:
            self._upstream.deadline = monotonic() + self._silence
            if pump is not None:
                pump.straight = framing.straight

    def _end(self, data: bytes | None) -> bytes:
        """Tell what to send when the worker's connection has ended, or was silent for too long."""
        if data is None:
            raise Silent("The worker stopped in the middle of its answer")
        if self._upstream.error is not None:
            raise Broken(f"The connection to the worker broke: {self._upstream.error.strerror}")
        return self._framing.end()
