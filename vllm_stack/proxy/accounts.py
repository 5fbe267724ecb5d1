"""What is kept of a request that has ended: its place in the tally, and its line in the access log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import monotonic

from vllm_stack.proxy.access_log import AccessLog
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.tally import CLIENT_LEFT, OTHER, ROUTES, TallyRow

# Asked every few seconds by whoever watches the door: they are counted, and fill no log.
_NOT_LOGGED = frozenset({Route.HEALTH, Route.LIVENESS})
_KNOWN = {route.encode(): route for route in ROUTES}


class Accounts:
    """The accounts of one process."""

    def __init__(
        self,
        tally: TallyRow,
        log: AccessLog | None,
        servers: Sequence[Backend],
        models: Sequence[Sequence[str]],
    ) -> None:
        self._tally = tally
        self._log = log
        self._names = [server.name for server in servers]
        self._models = [models[server.model][0] for server in servers]
        # Where there is one model, every request is about it.
        self._only = models[0][0] if len(models) == 1 else None

    def settle(self, request: Request, peer: Peer, sent_before: int) -> None:
        """Book a request that has ended; `sent_before` are the bytes the client had had until it began."""
        duration = monotonic() - request.began
        first_byte = peer.first_sent - request.began if peer.first_sent else None
        status = request.status or CLIENT_LEFT
        head, server, sent = request.head, request.server, peer.sent - sent_before
        self._tally.count(
            head.path, head.method, status, server, first_byte, duration, request.body_size, sent
        )
        if self._log is not None and head.route not in _NOT_LOGGED:
            self._log.add(
                time.time() - duration,
                request.id,
                None if head.caller is None else head.caller.name,
                head.method,
                _KNOWN.get(head.path, OTHER),
                self._only if server is None else self._models[server],
                None if server is None else self._names[server],
                status,
                request.end,
                request.body_size,
                sent,
                first_byte,
                duration,
                max(0, request.tries - 1),
            )

    def settle_nameless(self, status: int) -> None:
        """Book a refusal of what did not even come to be a request."""
        self._tally.count(b"", b"", status, None, None, 0.0, 0, 0)
