"""One request on its way to a worker and its answer on the way back.

One straight line in one greenlet: choose a worker, lease it, send, read the head, pass the body
on, release. A failure goes to `failures.may_retry`, then to `failures.refusal_for`.
"""

from __future__ import annotations

from vllm_stack.openai import SERVER_ERROR, error_event
from vllm_stack.proxy.admission import NOBODY, Ticket
from vllm_stack.proxy.answer_head import Answer, AnswerHead, read_answer
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.channel import READ_SIZE
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.failures import (
    Aborted,
    BadAnswer,
    Broken,
    ClientGone,
    ConnectFailed,
    Cut,
    Full,
    NotHere,
    Silent,
    StaleConnection,
    Stopping,
    Unavailable,
    UpstreamFailure,
    may_retry,
    refusal_for,
    retry_count,
)
from vllm_stack.proxy.framing import ABORT, ENGINE_DEAD, STOPPED, Framing
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.relay import Relay
from vllm_stack.proxy.request import CUT, HELD_BODY, Request
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.scoreboard import ABORTS, FAILURES
from vllm_stack.proxy.upload import Upload
from vllm_stack.proxy.upstream import Upstream
from vllm_stack.proxy.upstream_head import upstream_head

# An answer up to this size is read to its end before a byte goes out: until then it can be retried.
HELD_ANSWER = 256 * 1024

# Bytes of a body for which a worker has `channel.WRITE_TIMEOUT`.
SENT_AT_ONCE = 2 * HELD_BODY


class Exchange:
    """One request of one client; `run` answers it in every case."""

    __slots__ = (
        "_backends",
        "_door",
        "_keep_alive",
        "_peer",
        "_request",
        "_ticket",
        "_unsure",
        "_upload",
    )

    def __init__(self, door: Door, peer: Peer, request: Request, upload: Upload | None = None) -> None:
        """Take a request that is here, or of whose body the rest will come as an `upload`.

        Raises `Refusal` for one that names no model where there are several.
        """
        self._door = door
        self._backends = door.backends
        self._peer = peer
        self._request = request
        self._upload = upload
        self._keep_alive = request.head.keep_alive and not door.closing
        destination = door.backends.destination(request)
        self._ticket = Ticket(
            destination,
            request.head.route is not Route.OTHER,
            door.backends.barred(request, destination.model) if door.backends.bars else NOBODY,
        )
        # A server elsewhere could not tell whether it knows the response that the request names.
        self._unsure = False

    def run(self) -> bool:
        """Answer the request; True if the connection can carry another one.

        Raises `ClientGone` when nobody is left to answer, `Cut` for an answer that broke after it had
        begun, `Refusal` for the rest of an upload.
        """
        sent = 0
        failure: UpstreamFailure | None = None
        enter, patient = self._door.admission.enter, True
        while (backend := enter(self._ticket, self._peer, patient)) is not None:
            if failure is not None:
                self._door.row.count(retry_count(failure))
            try:
                return self._attempt(backend, fresh=isinstance(failure, StaleConnection))
            except UpstreamFailure as caught:
                failure = Stopping() if self._door.cutting else caught
            sent += not failure.unsent
            if isinstance(failure, Aborted):
                self._door.row.count(ABORTS)
            repeatable = self._upload is None and self._request.head.route is Route.INFERENCE
            if not may_retry(failure, sent > 1, repeatable):
                break
            self._avoid(backend, failure)
            # A worker that starts has forgotten what it stored: it is not waited for.
            patient = not isinstance(failure, NotHere)
        else:
            failure = self._nobody(failure)
        self._door.row.count(FAILURES)
        refusal = refusal_for(failure, sent > 1)
        self._request.status = refusal.status
        return self._peer.refuse(refusal, self._request, self._keep_alive)

    def _avoid(self, backend: Backend, failure: UpstreamFailure) -> None:
        """Have the next try go elsewhere."""
        ticket = self._ticket
        # A kept connection that died says nothing of its worker: the only one gets another, and
        # one that may know what nobody else does was not asked yet.
        if isinstance(failure, StaleConnection) and (
            ticket.destination.stored or not self._backends.another_ready(ticket.avoid, backend)
        ):
            return
        ticket.avoid |= {backend.index}
        if isinstance(failure, ConnectFailed):
            ticket.refused |= {backend.index}

    def _nobody(self, failure: UpstreamFailure | None) -> UpstreamFailure | None:
        """Say why no worker, or no further one, takes this request; None if none is ready."""
        if self._door.cutting:
            return Stopping()
        if failure is None or isinstance(failure, ConnectFailed):
            if not self._backends.any_ready(self._ticket.avoid):
                return None
            most = self._door.settings.max_inflight
            whose = " of this model" if self._backends.models.several else ""
            return Full(f"All workers{whose} are busy: each has the {most} requests it may have at a time")
        return failure

    def _attempt(self, backend: Backend, fresh: bool) -> bool:
        self._request.server = backend.index
        self._request.tries += 1
        try:
            try:
                fresh = fresh or self._upload is not None  # it cannot be sent again if a kept one died
                upstream = backend.pool.connect() if fresh else backend.pool.take()
            except OSError:
                backend.suspect("not listening")
                raise ConnectFailed(f"{backend.name} does not listen") from None
            self._peer.work = upstream
            reusable = False
            try:
                if self._peer.gone:  # while we connected: there was nothing yet to abort
                    raise ClientGone
                reusable = self._pass_on(backend, upstream)
            except Broken:
                backend.suspect("connection broke")
                raise
            except Unavailable:
                backend.suspect("unavailable")
                raise
            finally:
                self._peer.work = None
                backend.pool.put(upstream) if reusable else upstream.close()
        finally:
            self._door.admission.leave(backend, self._ticket)
        if not self._request.complete:  # the worker answered an upload early
            self._peer.linger()
        return self._keep_alive

    def _pass_on(self, backend: Backend, upstream: Upstream) -> bool:
        """Send the request and pass the answer on; gives whether the connection can be kept."""
        try:
            early = self._send(backend, upstream)
            answer, rest = self._read_head(upstream, early)
            if answer.head.status in (404, 503):
                self._look_elsewhere(backend, answer.head.status)
            start = answer.head_for(self._request, self._keep_alive)
            self._request.status = answer.head.status
            if answer.length is not None and answer.length <= HELD_ANSWER:
                clean = self._pass_on_held(backend, upstream, answer, start, rest)
            else:
                clean = self._stream(upstream, answer, start, rest)
        except UpstreamFailure:
            if self._peer.gone:
                raise ClientGone from None
            raise
        return clean and answer.head.keeps_alive and self._request.complete

    def _pass_on_held(
        self, backend: Backend, upstream: Upstream, answer: Answer, start: bytes, body: bytes
    ) -> bool:
        """Read a short answer to its end, then send it; until then it can be retried.

        Gives whether the worker sent just that.
        """
        no_body = answer.head.bodiless or self._request.head.method == b"HEAD"
        length = 0 if no_body else answer.length or 0
        while len(body) < length:
            body += self._receive(upstream)
        clean = len(body) == length
        if not clean:
            body = body[:length]
        failed = answer.head.status >= 500
        if ABORT in body or (failed and backend.is_stopping()):
            raise Aborted(STOPPED)
        if failed and ENGINE_DEAD in body:
            raise Broken("The engine of the worker died")
        self._peer.send(start + body)
        return clean

    def _look_elsewhere(self, backend: Backend, status: int) -> None:
        """Raise `UpstreamFailure` when another worker may do better than this 404, or 503 of another box."""
        unavailable = status == 503 and backend.remote
        if self._ticket.destination.stored and (status == 404 or unavailable):
            self._unsure = self._unsure or unavailable
            if self._unsure or self._backends.another_may_know({*self._ticket.avoid, backend.index}):
                raise NotHere("No worker that is ready knows this response; one that is not ready may")
        elif unavailable and self._request.head.route is Route.INFERENCE:
            raise Unavailable(f"{backend.name} has no worker ready")

    def _send(self, backend: Backend, upstream: Upstream) -> bytes | None:
        """Send the request; gives what a worker said that did not wait for all of it."""
        head = upstream_head(self._request, backend, self._peer)
        try:
            if self._upload is not None:
                upstream.send(head)
                return self._send_upload(self._upload, upstream)
            body = self._request.body
            if len(body) < READ_SIZE:
                upstream.send(head + body)
            else:
                upstream.send(head)
                for start in range(0, len(body), SENT_AT_ONCE):
                    upstream.send(memoryview(body)[start : start + SENT_AT_ONCE])
        except OSError as error:
            raise self._broken(upstream, f"The request could not be sent: {error}") from None
        return None

    def _send_upload(self, upload: Upload, upstream: Upstream) -> bytes | None:
        early = upload.run(upstream)
        if early is None:
            return None
        if not early:
            raise Broken("The worker hung up before it had the whole request")
        self._keep_alive = False  # the rest of the body is in the way
        return early

    def _read_head(self, upstream: Upstream, data: bytes | None = None) -> tuple[Answer, bytes]:
        """Read up to the end of the final head, past any 1xx; gives what came of the body too."""
        if data is None:
            data = self._receive(upstream, begun=False)
        while True:
            read = read_answer(data)
            if read is None:
                data += self._receive(upstream)
                continue
            answer, size = read
            data = data[size:]
            if answer.head.status >= 200:
                return answer, data
            if answer.head.status == 101:
                self._check_switch(answer.head)
                return answer, data
            data = data or self._receive(upstream)

    def _check_switch(self, head: AnswerHead) -> None:
        """Raise `BadAnswer` for a 101 that this request did not ask for; `upgrade.Upgrade` does ask."""
        raise BadAnswer("The worker switched protocols without being asked")

    def _receive(self, upstream: Upstream, begun: bool = True) -> bytes:
        """Read more of an answer that has `begun`, or not; raises `UpstreamFailure` when it ends."""
        try:
            data = upstream.receive(self._door.settings.response_timeout)
        except TimeoutError:
            raise Silent("The worker did not answer in time") from None
        if data:
            return data
        if upstream.error is not None:
            message = f"The connection to the worker broke: {upstream.error.strerror}"
        else:
            message = f"The worker hung up {'in the middle of its answer' if begun else 'before it answered'}"
        raise Broken(message) if begun else self._broken(upstream, message)

    @staticmethod
    def _broken(upstream: Upstream, message: str) -> UpstreamFailure:
        return StaleConnection(message) if upstream.reused else Broken(message)

    def _stream(self, upstream: Upstream, answer: Answer, start: bytes, rest: bytes) -> bool:
        """Pass a long answer on as it comes. Once it has begun it is never retried.

        Gives whether the worker sent just that.
        """
        framing = answer.framing_for(self._request)
        relay = Relay(self._peer, upstream, framing, self._door.settings.response_timeout)
        try:
            relay.run(rest, start)
        except UpstreamFailure as failure:
            if self._peer.gone or not relay.sent:
                raise
            self._cut(framing, answer.head, failure)
        return framing.clean

    def _cut(self, framing: Framing, head: AnswerHead, failure: UpstreamFailure) -> None:
        """End an answer that broke in the middle so that no client takes it for whole.

        An event stream gets OpenAI's error as its last event; nothing gets a last chunk.
        """
        self._door.row.count(FAILURES)
        self._request.end = CUT
        if head.is_events:
            message = str(Stopping() if self._door.cutting else failure)
            event = error_event(message, SERVER_ERROR, "upstream_error")
            self._peer.send(framing.event(event))
        raise Cut from failure
