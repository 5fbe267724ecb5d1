"""A request for a tunnel on its way to a worker: one more answer is possible, the 101 that opens it."""

from __future__ import annotations

from vllm_stack.proxy.answer_head import Answer, AnswerHead
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.exchange import Exchange
from vllm_stack.proxy.failures import BadAnswer
from vllm_stack.proxy.handshake import WEBSOCKET
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.tunnel import Tunnel
from vllm_stack.proxy.upstream import Upstream

# RFC 9110 section 7.8: these two concern one connection only, so they are said anew on each side.
_SWITCHED = b"connection: upgrade\r\nupgrade: websocket\r\nx-request-id: "


class Upgrade(Exchange):
    """An exchange whose connections, the client's and the worker's, are used for nothing else."""

    __slots__ = ("_switched",)

    def __init__(self, door: Door, peer: Peer, request: Request) -> None:
        super().__init__(door, peer, request)
        self._switched = False

    def run(self) -> bool:
        super().run()
        if self._switched:
            self._peer.linger()  # the worker is released already
        return False

    def _attempt(self, backend: Backend, fresh: bool) -> bool:
        return super()._attempt(backend, fresh=True)

    def _pass_on(self, backend: Backend, upstream: Upstream) -> bool:
        super()._pass_on(backend, upstream)
        return False

    def _check_switch(self, head: AnswerHead) -> None:
        if [value.lower() for name, value in head.headers if name.lower() == b"upgrade"] != [WEBSOCKET]:
            raise BadAnswer("The worker switched to a protocol that was not asked for")
        if head.chunked or head.length is not None:  # RFC 9110 sections 6.4.1 and 8.6
            raise BadAnswer("The worker switched protocols with a body")

    def _stream(self, upstream: Upstream, answer: Answer, start: bytes, rest: bytes) -> bool:
        if answer.head.status != 101:
            return super()._stream(upstream, answer, start, rest)
        head = b"".join((answer.head.kept, _SWITCHED, self._request.id, b"\r\n\r\n"))
        self._switched = True
        Tunnel(self._peer, upstream, self._door.settings.response_timeout).run(head + rest)
        upstream.linger()  # what the client said last may still be on its way
        return False
