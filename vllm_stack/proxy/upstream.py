"""Connections to one worker: kept while idle, dropped when the worker ends them."""

from __future__ import annotations

from gevent import socket

from vllm_stack.address import Address
from vllm_stack.proxy.channel import Channel
from vllm_stack.proxy.dial import dial


class Upstream(Channel):
    """One open connection; `reused` says that it has carried a request before."""

    __slots__ = ("reused",)

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.reused = False


class Pool:
    """The idle connections to one worker, the latest used first.

    They are watched: an idle connection has nothing to say, so whatever arrives is its end, and a
    worker's death is known without asking.
    """

    def __init__(self, address: Address, max_idle: float) -> None:
        self._address = address
        self._max_idle = max_idle
        self._idle: dict[Upstream, None] = {}  # in the order they came

    def take(self) -> Upstream:
        """Give an idle connection, else a new one; raises `OSError`."""
        if not self._idle:
            return self.connect()
        upstream, _ = self._idle.popitem()
        upstream.release()
        upstream.reused = True
        return upstream

    def connect(self) -> Upstream:
        """Open a new connection; raises `OSError` when the worker does not listen."""
        return Upstream(dial(self._address))

    def put(self, upstream: Upstream) -> None:
        """Keep a connection whose last answer ended cleanly."""
        self._idle[upstream] = None
        upstream.consume(lambda data: self._drop(upstream), self._max_idle)

    def _drop(self, upstream: Upstream) -> None:
        """Close a connection that ended, spoke out of turn, or has been idle for too long."""
        if self._idle.pop(upstream, upstream) is None:
            upstream.close()
