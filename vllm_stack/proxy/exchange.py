"""One request on its way to a worker and its answer on the way back.

One straight line in one greenlet: choose a worker, lease it, send, read the head, pass the body
on, release. A failure goes to `failures.may_retry`, then to `failures.refusal_for`.
"""

from __future__ import annotations

from vllm_stack.openai import SERVER_ERROR, error_event
from vllm_stack.proxy.answer_head import HOP_BY_HOP, MAX_HEAD, AnswerHead
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.failures import (
    Aborted,
    BadAnswer,
    Broken,
    ClientGone,
    ConnectFailed,
    Silent,
    StaleConnection,
    Stopping,
    UpstreamFailure,
    may_retry,
    refusal_for,
)
from vllm_stack.proxy.framing import ABORT, STOPPED, Framing
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.relay import READ_SIZE, WRITE_TIMEOUT, Relay
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.routes import is_inference
from vllm_stack.proxy.upstream import Upstream

# An answer up to this size is read to its end before a byte goes out: until then it can be retried.
HELD_ANSWER = 256 * 1024
# What the worker gets from us instead: its own key, our framing, our view of the connection.
_NOT_FORWARDED = HOP_BY_HOP | {
    b"authorization",
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"x-api-key",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
    b"x-request-id",
}


def upstream_head(request: Request, internal_key: str, client_ip: str) -> bytes:
    """Give the head that a worker gets: one well-formed request, whatever the client's looked like.

    Header names with an underscore are dropped: frameworks take `X_Auth` for `X-Auth`.
    """
    named = {word.strip().lower() for value in request.values(b"connection") for word in value.split(b",")}
    dropped = _NOT_FORWARDED | named
    # The client's Host goes along: a worker builds redirects from it.
    host = request.values(b"host") or [b"worker"]
    lines = [b"%s %s HTTP/1.1" % (request.method, request.target), b"host: " + host[0]]
    lines += [
        b"%s: %s" % pair for pair in request.headers if pair[0].lower() not in dropped and b"_" not in pair[0]
    ]
    lines.append(b"authorization: Bearer " + internal_key.encode())
    lines.append(b"x-request-id: " + request.id)
    lines.append(b"x-forwarded-for: " + client_ip.encode())
    if request.body_size or request.method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"content-length: %d" % request.body_size)
    return b"\r\n".join(lines) + b"\r\n\r\n"


class Exchange:
    """One request of one client; `run` answers it in every case."""

    def __init__(self, door: Door, peer: Peer, request: Request) -> None:
        self._door = door
        self._peer = peer
        self._request = request
        self._head = upstream_head(request, door.settings.internal_key, peer.ip)
        self._keep_alive = request.keep_alive and not door.closing

    def run(self) -> bool:
        """Answer the request; True if the connection can carry another one.

        Raises `ClientGone` when nobody is left to answer.
        """
        inference = is_inference(self._request.method, self._request.path)
        tried: set[int] = set()
        sent = 0
        failure: UpstreamFailure | None = None
        backend = self._door.backends.choose(tried)
        while backend is not None:
            if sent:
                self._door.row.count("retries")
            try:
                return self._attempt(backend, fresh=isinstance(failure, StaleConnection))
            except UpstreamFailure as caught:
                failure = Stopping() if self._door.cutting else caught
            sent += not failure.unsent
            if not may_retry(failure, sent > 1, inference):
                break
            tried.add(backend.index)
            # A kept connection that died says nothing of its worker: the only one gets another.
            alone = backend if isinstance(failure, StaleConnection) else None
            backend = self._door.backends.choose(tried) or alone
        self._door.row.count("failures")
        return self._peer.refuse(refusal_for(failure, sent > 1), self._request, self._keep_alive)

    def _attempt(self, backend: Backend, fresh: bool) -> bool:
        self._door.backends.lease(backend)
        self._door.busy.add(self._peer)
        try:
            upstream = self._connect(backend, fresh)
            reusable = False
            try:
                with self._peer.watching(upstream):
                    reusable = self._pass_on(backend, upstream)
                return self._keep_alive
            except Broken:
                backend.suspect("connection broke")
                raise
            finally:
                backend.pool.put(upstream) if reusable else upstream.close()
        finally:
            self._door.busy.discard(self._peer)
            self._door.backends.release(backend)

    def _connect(self, backend: Backend, fresh: bool) -> Upstream:
        try:
            return backend.pool.connect() if fresh else backend.pool.take()
        except OSError:
            backend.suspect("not listening")
            raise ConnectFailed(f"{backend.name} does not listen") from None

    def _pass_on(self, backend: Backend, upstream: Upstream) -> bool:
        """Send the request and pass the answer on; gives whether the connection can be kept."""
        try:
            self._send(upstream)
            head, rest = self._read_head(upstream)
            framing = head.framing_for(self._request)
            start = head.head_for(self._request, self._keep_alive)
            if head.length is not None and head.length <= HELD_ANSWER:
                body = self._read_held(upstream, framing, rest)
                if ABORT in body or (head.status >= 500 and backend.is_stopping()):
                    raise Aborted(STOPPED)
                self._peer.send(start + body)
            else:
                self._stream(upstream, framing, head, start, rest)
        except UpstreamFailure:
            if self._peer.gone:
                raise ClientGone from None
            raise
        return framing.clean and head.keeps_alive

    def _send(self, upstream: Upstream) -> None:
        upstream.sock.settimeout(WRITE_TIMEOUT)
        body = self._request.body()
        try:
            if len(body) < READ_SIZE:
                upstream.sock.sendall(self._head + body)
            else:
                upstream.sock.sendall(self._head)
                upstream.sock.sendall(body)
        except OSError as error:
            raise self._broken(upstream, f"The request could not be sent: {error}") from None

    def _read_head(self, upstream: Upstream) -> tuple[AnswerHead, bytes]:
        """Read up to the end of the final head, past any 1xx; gives what came of the body too."""
        data = b""
        while True:
            end = data.find(b"\r\n\r\n", 0, MAX_HEAD)
            if end >= 0:
                head = AnswerHead(data[: end + 4])
                data = data[end + 4 :]
                if head.status >= 200:
                    return head, data
                if head.status == 101:
                    raise BadAnswer("The worker switched protocols without being asked")
                continue
            if len(data) >= MAX_HEAD:
                raise BadAnswer(f"The head of the worker's answer exceeds {MAX_HEAD} bytes")
            more = self._receive(upstream)
            if not more and data:
                raise Broken("The worker's answer ended in its head")
            if not more:
                raise self._broken(upstream, "The worker hung up before it answered")
            data += more

    def _read_held(self, upstream: Upstream, framing: Framing, rest: bytes) -> bytes:
        """Read a short answer to its end; until then nothing has gone out and all can be retried."""
        parts = [framing.feed(rest)]
        while not framing.done:
            data = self._receive(upstream)
            if not data:
                raise Broken("The worker hung up in the middle of its answer")
            parts.append(framing.feed(data))
        return b"".join(parts)

    def _receive(self, upstream: Upstream) -> bytes:
        upstream.sock.settimeout(self._door.settings.response_timeout)
        try:
            data: bytes = upstream.sock.recv(READ_SIZE)
        except TimeoutError:
            raise Silent("The worker did not answer in time") from None
        except OSError as error:
            raise self._broken(upstream, f"The connection to the worker broke: {error.strerror}") from None
        return data

    @staticmethod
    def _broken(upstream: Upstream, message: str) -> UpstreamFailure:
        return StaleConnection(message) if upstream.reused else Broken(message)

    def _stream(
        self, upstream: Upstream, framing: Framing, head: AnswerHead, start: bytes, rest: bytes
    ) -> None:
        """Pass a long answer on as it comes. Once it has begun it is never retried."""
        relay = Relay(self._peer.sock, upstream, framing, self._door.settings.response_timeout)
        try:
            relay.run(rest, start)
        except UpstreamFailure as failure:
            if self._peer.gone or not relay.sent:
                raise
            self._cut(framing, head, failure)

    def _cut(self, framing: Framing, head: AnswerHead, failure: UpstreamFailure) -> None:
        """End an answer that broke in the middle so that no client takes it for whole.

        An event stream gets OpenAI's error as its last event; nothing gets a last chunk.
        """
        self._door.row.count("failures")
        if head.is_events:
            message = str(Stopping() if self._door.cutting else failure)
            event = error_event(message, SERVER_ERROR, "upstream_error")
            self._peer.send(framing.event(event))
        raise ClientGone from failure
