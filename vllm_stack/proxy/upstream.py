"""Connections to one worker: opened on loopback, kept while idle, checked before they are used again."""

from __future__ import annotations

import socket as stdlib_socket
import time

from gevent import socket

CONNECT_TIMEOUT = 5.0


class Upstream:
    """One open connection; `reused` says that it has carried a request before."""

    __slots__ = ("idle_since", "raw", "reused", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        # The socket under gevent's: never blocks, and calls on it switch no greenlet.
        self.raw: stdlib_socket.socket = sock._sock  # type: ignore[attr-defined]  # gevent names it for this use
        self.reused = False
        self.idle_since = 0.0

    def is_alive(self) -> bool:
        """Peek: an idle connection has nothing to say, so anything but "would block" is its end."""
        try:
            self.raw.recv(1, stdlib_socket.MSG_PEEK | stdlib_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """End it from anywhere, a hub callback included: whoever waits on it sees end of file."""
        try:
            self.raw.shutdown(stdlib_socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self.sock.close()


class Pool:
    """The idle connections to one worker, the latest used first."""

    def __init__(self, address: tuple[str, int], max_idle: float) -> None:
        self._address = address
        self._max_idle = max_idle
        self._idle: list[Upstream] = []

    def take(self) -> Upstream:
        """Give an idle connection that is still alive, else a new one; raises `OSError`."""
        now = time.monotonic()
        while self._idle:
            upstream = self._idle.pop()
            if now - upstream.idle_since < self._max_idle and upstream.is_alive():
                upstream.reused = True
                return upstream
            upstream.close()
        return self.connect()

    def connect(self) -> Upstream:
        """Open a new connection; raises `OSError` when the worker does not listen."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.settimeout(CONNECT_TIMEOUT)
            sock.connect(self._address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        return Upstream(sock)

    def put(self, upstream: Upstream) -> None:
        """Keep a connection whose last answer ended cleanly."""
        upstream.idle_since = time.monotonic()
        self._idle.append(upstream)

    def expire(self) -> None:
        """Close what has been idle for too long; the oldest are at the front."""
        oldest = time.monotonic() - self._max_idle
        while self._idle and self._idle[0].idle_since < oldest:
            self._idle.pop(0).close()
