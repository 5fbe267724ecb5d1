"""A TCP relay that breaks what comes back from a worker: at any byte, as networks do.

Connections that begin with a health check pass as they are, so that a worker looks well all the time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

HOST = "127.0.0.1"
_READ = 65536
_HEALTH = b"GET /health "


@dataclass(frozen=True)
class Fault:
    """What happens on a connection: after `after` bytes an `end`; slices of `size` bytes, `pause` s apart.

    `close` and `reset` end both sides, `hang` passes nothing more and keeps the connections.
    """

    end: Literal["close", "reset", "hang", None] = None
    after: int = 0
    size: int = _READ
    pause: float = 0.0


SOUND = Fault()


class FaultShim:
    """Listens on one port of loopback for a worker that listens on another."""

    def __init__(self, port: int, worker: int) -> None:
        self.fault = SOUND
        # Bytes of answers that have passed to the proxy since the fault was set.
        self.passed = 0
        self._worker = worker
        self._listener = socket.create_server((HOST, port))
        self._open: set[socket.socket] = set()
        self._spawn(self._accept)

    def close(self) -> None:
        """Take no more connections; those there are end with the proxy and the worker."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._listener.close()

    def set(self, fault: Fault) -> None:
        """Have this happen to all that comes from now on; connections there are end: none is half spent."""
        self.hang_up()
        self.fault, self.passed = fault, 0

    def hang_up(self) -> None:
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _spawn(target: Callable[..., None], *args: socket.socket) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._spawn(self._relay, client)

    def _relay(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection((HOST, self._worker)) as worker:
            first = client.recv(_READ)
            worker.sendall(first)
            forwarding = self._spawn(self._forward, client, worker)
            if first.startswith(_HEALTH):
                self._back(worker, client)
                return
            self._open |= {client, worker}
            try:
                self._break(worker, client)
            finally:
                self._open -= {client, worker}
                # A socket that another thread reads does not end by being closed.
                client.shutdown(socket.SHUT_RD)
                forwarding.join(10)

    @staticmethod
    def _forward(client: socket.socket, worker: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(_READ):
                worker.sendall(data)
            worker.shutdown(socket.SHUT_WR)

    @staticmethod
    def _back(worker: socket.socket, client: socket.socket) -> None:
        while data := worker.recv(_READ):
            client.sendall(data)

    def _break(self, worker: socket.socket, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fault, passed = self.fault, 0
        while fault.end is None or passed < fault.after:
            data = worker.recv(fault.size if fault.end is None else min(fault.size, fault.after - passed))
            if not data:
                return
            time.sleep(fault.pause)
            passed += len(data)
            self.passed += len(data)
            client.sendall(data)
        self._end(fault, client)

    @staticmethod
    def _end(fault: Fault, client: socket.socket) -> None:
        if fault.end == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        elif fault.end == "hang":
            _wait_for_end(client)


def _wait_for_end(sock: socket.socket) -> None:
    """Return when the proxy has had enough."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if not sock.recv(_READ, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return
        except BlockingIOError:
            time.sleep(0.02)
