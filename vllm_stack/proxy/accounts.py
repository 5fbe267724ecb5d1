"""What is kept of a request that has ended: its place in the tally, and its line in the access log.

Requests are noted when they end, and booked many at a time, some a tenth of a second later: the same steps
over and over cost half of what they cost one by one between two requests, when the caches of the processor
are full of other things.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import monotonic

import gevent

from vllm_stack.proxy.access_log import AccessLog
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import METHODS, RequestHead
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.tally import CLIENT_LEFT, OTHER, ROUTES, TallyRow

# Asked every few seconds by whoever watches the door: they are counted, and fill no log.
_NOT_LOGGED = frozenset({Route.HEALTH, Route.LIVENESS})
_KNOWN = {route.encode(): route for route in ROUTES}
_METHODS = {method: method.decode() for method in METHODS}
# As many are booked at once: a fraction of a millisecond.
_BATCH = 64
# Seconds after which the last of them are, too.
_INTERVAL = 0.1

# Head, id, status, server, end, bytes in, tries, bytes out; and by `time.monotonic` when it began, when the
# first byte of the answer was sent (0: none was), and when it ended.
_Ended = tuple[RequestHead, bytes, int, int | None, str, int, int, int, float, float, float]


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
        self._ended: list[_Ended] = []

    def settle(self, request: Request, peer: Peer, sent_before: int) -> None:
        """Note a request that has ended; `sent_before` are the bytes the client had had until it began."""
        ended = self._ended
        ended.append(
            (
                request.head,
                request.id,
                request.status,
                request.server,
                request.end,
                request.body_size,
                request.tries,
                peer.sent - sent_before,
                request.began,
                peer.first_sent,
                monotonic(),
            )
        )
        if len(ended) >= _BATCH:
            self.book()

    def settle_nameless(self, status: int) -> None:
        """Book a refusal of what did not even come to be a request."""
        self._tally.count(b"", b"", status, None, None, 0.0, 0, 0)

    def run(self) -> None:
        """Book what has ended, again and again; for ever."""
        while True:
            gevent.sleep(_INTERVAL)
            self.book()

    def book(self) -> None:
        """Count what has ended, and give it to the log."""
        if not self._ended:
            return
        batch, self._ended = self._ended, []
        count = self._tally.count
        clock = time.time() - monotonic()
        for head, name, status, server, end, size, tries, sent, began, first_sent, at in batch:
            first_byte = first_sent - began if first_sent else None
            code = status or CLIENT_LEFT
            count(head.path, head.method, code, server, first_byte, at - began, size, sent)
            if self._log is not None and head.route not in _NOT_LOGGED:
                kind = (
                    None if head.caller is None else head.caller.name,
                    _METHODS[head.method],
                    _KNOWN.get(head.path, OTHER),
                    self._only if server is None else self._models[server],
                    None if server is None else self._names[server],
                    code,
                    end,
                )
                self._log.add(
                    began + clock, name, kind, size, sent, first_byte, at - began, max(0, tries - 1)
                )
