"""A WebSocket's bytes in both directions, once the worker has agreed to it.

Nobody looks into the frames. What arrives on one side is written to the other in the hub's callback,
as in `relay.Relay`; the request's greenlet sleeps until the tunnel has ended. A side whose socket is
full gets a greenlet of its own for as long as that lasts, and nothing is read from the other one
meanwhile: so memory stays bounded, and the end of a side is met behind all that it had sent.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

import gevent
from gevent.event import Event

from vllm_stack.proxy.channel import Channel
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.upstream import Upstream


class Tunnel:
    """A client and a worker that talk to each other; closes neither."""

    __slots__ = ("_down", "_ended", "_peer", "_silence", "_up")

    def __init__(self, peer: Peer, upstream: Upstream, silence: float) -> None:
        self._peer = peer
        self._silence = silence
        self._ended = Event()
        end = self._ended.set
        # A worker that takes no more may have said why: the other flow meets its end behind that.
        self._up = _Flow(peer, upstream, on_end=end, on_deaf=lambda: None)
        self._down = _Flow(upstream, peer, on_end=end, on_deaf=end)

    def run(self, first: bytes) -> None:
        """Send the client `first`, then pass on all that comes, until a side ends or both are silent.

        Raises `ClientGone` when the client does not even take the first.
        """
        self._peer.send(first)
        try:
            self._down.open()
            self._up.open(self._peer.take_early())
            self._wait()
        finally:
            self._up.close()
            self._down.close()

    def _wait(self) -> None:
        left = self._silence
        while left > 0 and not self._ended.wait(left):
            left = max(self._up.moved, self._down.moved) + self._silence - monotonic()


class _Flow:
    """One direction: what `source` sends is written to `sink`.

    Calls `on_end` when the source has ended or the sink took nothing for too long, `on_deaf` when the
    sink is gone. `moved` is when something last came, by `time.monotonic`.
    """

    __slots__ = ("_on_deaf", "_on_end", "_patient", "_sink", "_source", "moved")

    def __init__(
        self, source: Channel, sink: Channel, on_end: Callable[[], Any], on_deaf: Callable[[], Any]
    ) -> None:
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._on_deaf = on_deaf
        # The greenlet that waits until the sink has room again.
        self._patient: gevent.Greenlet[..., None] | None = None
        self.moved = monotonic()

    def open(self, first: bytes = b"") -> None:
        """Pass on `first`, then whatever comes."""
        self._source.consume(self._on_data, inf)
        if first:
            self._on_data(first)

    def close(self) -> None:
        if self._patient is not None:
            self._patient.kill()
        self._source.release()

    def _on_data(self, data: bytes | None) -> None:
        """Move what came; runs in the hub, once for every message, and must neither block nor raise."""
        if not data:
            self._on_end()
            return
        self.moved = monotonic()
        try:
            sent = self._sink.raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._source.pause()
            self._on_deaf()
            return
        self._sink.sent += sent
        if sent < len(data):
            self._source.pause()
            self._patient = gevent.spawn(self._send_rest, memoryview(data)[sent:])

    def _send_rest(self, rest: memoryview) -> None:
        try:
            self._sink.send_rest(rest)
        except (TimeoutError, ClientGone):
            self._on_end()
        except OSError:
            self._on_deaf()
        else:
            self.moved = monotonic()
            self._source.consume(self._on_data, inf)
