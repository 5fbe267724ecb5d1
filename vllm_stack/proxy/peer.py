"""The client's end of a connection: what is sent to it, and whether it is still there."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from time import monotonic
from typing import Any, Protocol

from vllm_stack.proxy.channel import Channel
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.refusal import Refusal, answer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.tls import TlsSocket

# A client that sends more than this while it waits for an answer is no longer watched.
_EARLY_BYTES = 256 * 1024
# Seconds: a connection to a door that closes brings its first request within them, or never.
FIRST_REQUEST = 1.0


class Work(Protocol):
    """What is under way for a client: a place in line, then a connection to a worker."""

    def abort(self) -> None:
        """End it, from a hub callback too."""
        ...


class Peer(Channel):
    """A client; `gone` turns true when it hangs up while it is owed an answer.

    `work` is what is under way for it, which is aborted as soon as it hangs up, so that the worker
    stops generating. A client that only closes its sending half counts as gone: the two cannot be
    told apart.
    """

    __slots__ = ("_begun", "first_sent", "gone", "idle", "ip", "secure", "served", "work")

    def __init__(self, sock: Any, ip: str) -> None:
        super().__init__(sock, between=self._take_early)
        self.ip = ip.encode()
        self.gone = False
        # Before a request; once it was served, it may be ended without a word (RFC 9112 section 9.6).
        self.idle = False
        self.served = False
        # When the first byte of the answer in progress was sent, by `time.monotonic`; 0: none was.
        self.first_sent = 0.0
        self._begun = monotonic()
        self.work: Work | None = None
        self.secure = isinstance(sock, TlsSocket)
        # A first request may have come with the end of the handshake: nothing else will tell of it.
        if self.secure:
            self._early = sock.early

    def unread(self, data: bytes) -> None:
        """Take back what was read of the client's bytes but not used."""
        self._early = data + self._early

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`; raises `ClientGone` when the client does not take it."""
        try:
            sent = self.raw.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            raise ClientGone from None
        self.sent += sent
        if not self.first_sent:
            self.first_sent = monotonic()
        if sent < len(data):
            self.send_rest(memoryview(data)[sent:])

    def send_rest(self, data: memoryview | bytes) -> None:
        """Send what the client had no room for; raises `ClientGone` when it does not take it."""
        try:
            super().send_rest(data)
        except OSError:
            raise ClientGone from None

    def refuse(self, refusal: Refusal, request: Request | None, keep_alive: bool) -> bool:
        """Send an error answer; gives whether the connection can go on."""
        go_on = keep_alive and not refusal.close and request is not None and request.complete
        head_only = request is not None and request.method == b"HEAD"
        identity = (("x-request-id", request.id.decode()),) if request is not None else ()
        origins = (request.cors or ()) if request is not None else ()
        self.send(
            answer(
                refusal.status,
                refusal.body(),
                headers=refusal.headers + identity + origins,
                keep_alive=go_on,
                head_only=head_only,
            )
        )
        if not go_on:
            self.linger()
        return go_on

    def abort_work(self) -> None:
        """Have the answer in progress, if there is one, end as if the worker had hung up."""
        if self.work is not None:
            self.work.abort()

    def end_idle(self) -> None:
        """Hang up between two requests, unless the next one is here already and only waits to be read.

        Whoever has just come is owed an answer, if the request follows soon.
        """
        if not self.idle:
            return
        if not self.served and (left := self._begun + FIRST_REQUEST - monotonic()) > 0:
            self.hasten(left)
            return
        with contextlib.suppress(OSError):
            self.raw.recv(1, stdlib_socket.MSG_PEEK)
            return
        self.abort()

    def _take_early(self, data: bytes | None) -> None:
        """Tell the client's end from an early next request, which is kept: its end may follow."""
        if data:
            self._early += data
            if len(self._early) >= _EARLY_BYTES:
                self.pause()
        else:
            self.gone = True
            self.abort_work()
