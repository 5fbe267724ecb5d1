"""One client connection: requests are read, admitted and answered in order, until it ends."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from vllm_stack.openai import SERVER_ERROR
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.exchange import Exchange
from vllm_stack.proxy.failures import ClientGone, Cut
from vllm_stack.proxy.peer import FIRST_REQUEST, Peer
from vllm_stack.proxy.refusal import Refusal, answer
from vllm_stack.proxy.request import HELD_BODY, LEFT, Request
from vllm_stack.proxy.request_parser import RequestParser
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.scoreboard import CLIENT_GONE, REFUSED, REQUESTS
from vllm_stack.proxy.upgrade import Upgrade
from vllm_stack.proxy.upload import Upload

# Seconds. A head must be there in HEAD_DEADLINE from its first byte; a body gets BODY_GRACE and one
# second more for every BODY_RATE bytes that came, so that large uploads pass and trickles do not.
KEEP_ALIVE = 75.0
HEAD_DEADLINE = 20.0
BODY_GRACE = 30.0
BODY_RATE = 1024
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client:
    """A connection of the public door."""

    def __init__(self, door: Door, sock: Any, ip: str) -> None:
        self._door = door
        self._peer = Peer(sock, ip)
        self._parser = RequestParser(door.settings.max_body, door.known_heads)
        self._body_begun = 0.0
        door.peers.add(self._peer)

    def serve(self) -> None:
        """Answer requests until the connection ends; never raises what a client can cause."""
        try:
            while self._serve_one():
                pass
        except (ClientGone, Cut, OSError):
            pass
        except Exception:
            self._door.log.exception("A bug of ours ended a connection of %s", self._peer.ip.decode())
            refusal = Refusal(502, "proxy_error", "The proxy failed", kind=SERVER_ERROR, close=True)
            with contextlib.suppress(OSError, ClientGone):
                self._peer.refuse(refusal, None, keep_alive=False)
        finally:
            self._door.peers.discard(self._peer)
            self._peer.close()

    def _serve_one(self) -> bool:
        request: Request | None = None
        sent_before = self._peer.sent
        self._peer.first_sent = 0.0
        try:
            request = self._read_head()
            if request is None:
                return False
            self._door.row.totals[REQUESTS] += 1
            self._peer.served = True
            local = self._door.admit(request)
            if not request.complete:
                self._read_body(request)
                if local is not None and not request.complete:
                    raise Refusal(413, "request_too_large", "No such body is expected here", close=True)
        except Refusal as refusal:
            keep_alive = self._refuse(refusal, request)
        else:
            keep_alive = self._exchange(request) if local is None else self._answer_locally(*local, request)
        finally:
            if request is not None:
                if request.caller is not None:
                    request.caller.leave()
                self._door.accounts.settle(request, self._peer, sent_before)
        if keep_alive:
            self._parser.requests.popleft()
        return keep_alive

    def _exchange(self, request: Request) -> bool:
        try:
            if request.complete and request.head.route is not Route.TUNNEL:  # the usual case
                return Exchange(self._door, self._peer, request).run()
            return self._uncommon(request).run()
        except Refusal as refusal:  # of its model, or of the rest of an upload
            return self._refuse(refusal, request)
        except ClientGone:
            request.end = LEFT
            self._door.row.count(CLIENT_GONE)
            raise

    def _uncommon(self, request: Request) -> Exchange:
        if request.head.route is Route.TUNNEL:
            self._peer.unread(self._parser.behind)
            return Upgrade(self._door, self._peer, request)
        return Exchange(self._door, self._peer, request, Upload(request, self._read_more))

    def _refuse(self, refusal: Refusal, request: Request | None) -> bool:
        self._door.row.count(REFUSED)
        if request is None:
            self._door.accounts.settle_nameless(refusal.status)
        else:
            request.status = refusal.status
        keep_alive = request is not None and request.head.keep_alive and not self._door.closing
        return self._peer.refuse(refusal, request, keep_alive)

    def _answer_locally(self, status: int, body: bytes, request: Request) -> bool:
        request.status = status
        keep_alive = request.head.keep_alive and not self._door.closing
        headers = request.cors or ()
        if status == 503:
            headers += (("retry-after", "5"),)
        head_only = request.method == b"HEAD"
        self._peer.send(answer(status, body, headers=headers, keep_alive=keep_alive, head_only=head_only))
        return keep_alive

    def _read_head(self) -> Request | None:
        """Read until a head is complete; None when the client ends the connection between requests."""
        deadline: float | None = None
        while not self._parser.requests:
            self._parser.raise_refusal()
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
        """Read the body, or as much of it as is held."""
        if request.head.expects_continue:
            self._peer.send(_CONTINUE)
            self._peer.first_sent = 0.0  # that was no answer
        self._body_begun = time.monotonic()
        held = self._door.held(request)
        while not request.complete and request.body_size <= held:
            pieces = len(request.chunks)
            self._read_more(request)
            if held > HELD_BODY:
                request.gather(pieces)

    def _read_more(self, request: Request) -> None:
        """Read more of the body; a part beyond HELD_BODY is waited for no longer than BODY_GRACE."""
        self._parser.raise_refusal()
        deadline = self._body_begun + BODY_GRACE + request.body_size / BODY_RATE
        if request.body_size > HELD_BODY:  # a worker waits, too, or much is held
            deadline = min(deadline, time.monotonic() + BODY_GRACE)
        self._parser.feed(self._receive(deadline, "body"))

    def _receive_idle(self) -> bytes:
        """Wait for the next request; empty when the client, the time or the door ended the wait."""
        if self._door.closed and self._peer.served:
            return b""
        self._peer.idle = True
        try:
            return self._peer.receive(FIRST_REQUEST if self._door.closed else KEEP_ALIVE)
        except TimeoutError:
            return b""
        finally:
            self._peer.idle = False

    def _receive(self, deadline: float, part: str) -> bytes:
        """Read more of a request that has begun; raises `Refusal` at its deadline or a cut."""
        try:
            data = self._peer.receive(max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            message = f"The request's {part} took too long"
            raise Refusal(408, "request_timeout", message, close=True) from None
        if not data:
            raise Refusal(400, "bad_request", f"The request ended in its {part}", close=True)
        return data
