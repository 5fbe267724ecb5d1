"""The client's end of a connection: what is sent to it, and whether it is still there."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import time
from collections.abc import Iterator
from typing import Any

import gevent

from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.refusal import Refusal, answer
from vllm_stack.proxy.relay import READ_SIZE, WRITE_TIMEOUT
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.upstream import Upstream

# A client that sends more than this while it waits for an answer is no longer watched.
_EARLY_BYTES = 256 * 1024
# After an answer that ends the connection: how long, and how much, a client may go on sending.
_LINGER = 2.0
_LINGER_BYTES = 1024 * 1024


class Peer:
    """A client; `gone` turns true when it hangs up."""

    def __init__(self, sock: Any, ip: str) -> None:
        self.sock = sock
        self.ip = ip
        self.gone = False
        self._watcher = gevent.get_hub().loop.io(sock.fileno(), 1)
        self._upstream: Upstream | None = None
        self._early = b""

    def receive(self, timeout: float) -> bytes:
        """Give the client's next bytes, empty at its end; raises `TimeoutError` or `OSError`."""
        if self._early:
            early, self._early = self._early, b""
            return early
        self.sock.settimeout(timeout)
        data: bytes = self.sock.recv(READ_SIZE)
        return data

    def send(self, data: bytes) -> None:
        """Send all of `data`; raises `ClientGone` when the client does not take it."""
        self.sock.settimeout(WRITE_TIMEOUT)
        try:
            self.sock.sendall(data)
        except OSError:
            raise ClientGone from None

    def refuse(self, refusal: Refusal, request: Request | None, keep_alive: bool) -> bool:
        """Send an error answer; gives whether the connection can go on."""
        go_on = keep_alive and not refusal.close and request is not None and request.complete
        head_only = request is not None and request.method == b"HEAD"
        identity = (("x-request-id", request.id.decode()),) if request is not None else ()
        self.send(
            answer(
                refusal.status,
                refusal.body(),
                headers=refusal.headers + identity,
                keep_alive=go_on,
                head_only=head_only,
            )
        )
        if not go_on:
            self._linger()
        return go_on

    @contextlib.contextmanager
    def watching(self, upstream: Upstream) -> Iterator[None]:
        """Abort `upstream` as soon as the client hangs up, so that the worker stops generating.

        A client that only closes its sending half counts as gone: the two cannot be told apart.
        """
        self._upstream = upstream
        self._watcher.start(self._on_readable)
        try:
            yield
        finally:
            self._watcher.stop()
            self._upstream = None

    def abort_upstream(self) -> None:
        """Have the answer in progress, if there is one, end as if the worker had hung up."""
        if self._upstream is not None:
            self._upstream.abort()

    def hang_up(self) -> None:
        """End the connection from outside its greenlet, which then sees its end."""
        with contextlib.suppress(OSError):
            self.sock._sock.shutdown(stdlib_socket.SHUT_RDWR)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()
        self.sock.close()

    def _on_readable(self) -> None:
        """Tell the client's end from an early next request, which is kept: its end may follow."""
        try:
            data = self.sock._sock.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._early += data
            if len(self._early) < _EARLY_BYTES:
                return
        else:
            self.gone = True
            self.abort_upstream()
        self._watcher.stop()

    def _linger(self) -> None:
        """Let the client read the answer: closing with unread bytes would reset it away from them."""
        with contextlib.suppress(OSError):
            self.sock._sock.shutdown(stdlib_socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER
            taken = 0
            while taken < _LINGER_BYTES and (left := deadline - time.monotonic()) > 0:
                data = self.receive(left)
                if not data:
                    return
                taken += len(data)
