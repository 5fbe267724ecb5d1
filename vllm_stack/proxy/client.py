"""One client connection: requests are read, admitted and answered in order, until it ends."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gevent

from vllm_stack.proxy.exchange import Exchange
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.refusal import Refusal, answer
from vllm_stack.proxy.relay import READ_SIZE, WRITE_TIMEOUT
from vllm_stack.proxy.request import Request, RequestParser
from vllm_stack.proxy.upstream import Upstream

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door

# Seconds. A head must be there in HEAD_DEADLINE from its first byte; a body gets BODY_GRACE and one
# second more for every BODY_RATE bytes that came, so that large uploads pass and trickles do not.
KEEP_ALIVE = 75.0
HEAD_DEADLINE = 20.0
BODY_GRACE = 30.0
BODY_RATE = 1024
_LINGER = 2.0
_LINGER_BYTES = 1024 * 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client:
    """A connection of the public door; `gone` turns true when the client hangs up."""

    def __init__(self, door: Door, sock: Any, ip: str) -> None:
        self.door = door
        self.sock = sock
        self.ip = ip
        self.gone = False
        self._parser = RequestParser(door.settings.max_body)
        self._watcher = gevent.get_hub().loop.io(sock.fileno(), 1)
        self._upstream: Upstream | None = None

    def serve(self) -> None:
        """Answer requests until the connection ends; never raises what a client can cause."""
        try:
            while self._serve_one():
                pass
        except (ClientGone, OSError):
            pass
        except Exception:
            self.door.log.exception("A bug of ours ended a connection of %s", self.ip)
            with contextlib.suppress(OSError, ClientGone):
                refusal = Refusal(502, "proxy_error", "The proxy failed", kind="server_error")
                self.refuse(refusal, None, keep_alive=False)
        finally:
            self.door.idle.discard(self)
            self._watcher.stop()
            self._watcher.close()
            self.sock.close()

    def close_if_idle(self) -> None:
        """Hang up on a client that is between two requests; called when the door closes."""
        if self in self.door.idle:
            with contextlib.suppress(OSError):
                self.sock._sock.shutdown(stdlib_socket.SHUT_RDWR)

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
        self.door.busy.add(self)
        self._watcher.start(self._on_readable)
        try:
            yield
        finally:
            self._watcher.stop()
            self.door.busy.discard(self)
            self._upstream = None

    def abort_upstream(self) -> None:
        """Have the answer in progress, if there is one, end as if the worker had hung up."""
        if self._upstream is not None:
            self._upstream.abort()

    def _on_readable(self) -> None:
        try:
            data = self.sock._sock.recv(1, stdlib_socket.MSG_PEEK | stdlib_socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._watcher.stop()
        if data:
            return  # the next request came early; watching on would only spin
        self.gone = True
        self.abort_upstream()

    def _serve_one(self) -> bool:
        try:
            request = self._read_head()
            if request is None:
                return False
            self.door.row.count("requests")
            try:
                local = self.door.admit(request)
                self._read_body(request)
            except Refusal as refusal:
                return self._count_refused(refusal, request)
        except Refusal as refusal:
            return self._count_refused(refusal, None)
        self._parser.requests.popleft()
        if local is not None:
            status, body = local
            return self._answer_locally(status, body, request)
        try:
            return Exchange(self, request).run()
        except ClientGone:
            if self.gone:
                self.door.row.count("client_gone")
            raise

    def _count_refused(self, refusal: Refusal, request: Request | None) -> bool:
        self.door.row.count("refused")
        if request is not None and request.complete:
            self._parser.requests.popleft()
        keep_alive = request is not None and request.keep_alive and not self.door.closing
        return self.refuse(refusal, request, keep_alive)

    def _answer_locally(self, status: int, body: bytes, request: Request) -> bool:
        keep_alive = request.keep_alive and not self.door.closing
        headers = (("retry-after", "5"),) if status == 503 else ()
        head_only = request.method == b"HEAD"
        self.send(answer(status, body, headers=headers, keep_alive=keep_alive, head_only=head_only))
        return keep_alive

    def _read_head(self) -> Request | None:
        """Read until a head is complete; None when the client ends the connection between requests."""
        deadline: float | None = None
        while not self._parser.requests:
            if self._parser.started and deadline is None:
                deadline = time.monotonic() + HEAD_DEADLINE
            if deadline is None:
                data = self._receive_idle()
                if not data:
                    return None
            else:
                data = self._receive(deadline, "head")
            self._parser.feed(data)
        return self._parser.requests[0]

    def _read_body(self, request: Request) -> None:
        if request.complete:
            return
        if request.expects_continue:
            self.send(_CONTINUE)
        begun = time.monotonic()
        while not request.complete:
            deadline = begun + BODY_GRACE + request.body_size / BODY_RATE
            self._parser.feed(self._receive(deadline, "body"))

    def _receive_idle(self) -> bytes:
        """Wait for the next request; empty when the client, the time or the door ended the wait."""
        if self.door.closing:
            return b""
        self.door.idle.add(self)
        self.sock.settimeout(KEEP_ALIVE)
        try:
            data: bytes = self.sock.recv(READ_SIZE)
        except TimeoutError:
            return b""
        finally:
            self.door.idle.discard(self)
        return data

    def _receive(self, deadline: float, part: str) -> bytes:
        """Read more of a request that has begun; raises `Refusal` at its deadline or a cut."""
        self.sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data: bytes = self.sock.recv(READ_SIZE)
        except TimeoutError:
            raise Refusal(408, "request_timeout", f"The request's {part} took too long", close=True) from None
        if not data:
            raise Refusal(400, "bad_request", f"The request ended in its {part}", close=True)
        return data

    def _linger(self) -> None:
        """Let the client read the answer: closing with unread bytes would reset it away from them."""
        with contextlib.suppress(OSError):
            self.sock._sock.shutdown(stdlib_socket.SHUT_WR)
            deadline = time.monotonic() + _LINGER
            taken = 0
            while taken < _LINGER_BYTES and (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                data = self.sock.recv(READ_SIZE)
                if not data:
                    return
                taken += len(data)
