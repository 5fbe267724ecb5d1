"""The public door of one proxy process: what all its connections share."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

import gevent

from vllm_stack.proxy import health
from vllm_stack.proxy.admission import Admission
from vllm_stack.proxy.auth import check_key
from vllm_stack.proxy.backends import Backends
from vllm_stack.proxy.cors import Cors
from vllm_stack.proxy.handshake import check_origin
from vllm_stack.proxy.known_heads import KnownHeads
from vllm_stack.proxy.model_list import model_list
from vllm_stack.proxy.model_name import in_query
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import HELD_BODY, Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routes import Route, lists_models, route_of
from vllm_stack.proxy.scoreboard import Row, Scoreboard
from vllm_stack.proxy.settings import ProxySettings

# Seconds before the end of the drain at which open answers are cut.
CUT_AHEAD = 1.0
_KNOWN_HEADS = 1024


class Door:
    """Settings, workers and counters.

    `closing` turns true when a shutdown begins, `cutting` when its patience is over.
    """

    def __init__(self, settings: ProxySettings, board: Scoreboard, row: Row) -> None:
        self.settings = settings
        self.board = board
        self.row = row
        self.backends = Backends(settings, board, row)
        self.admission = Admission(self.backends, row, settings.max_inflight, settings.queue_timeout)
        self.log = logging.getLogger("gunicorn.error")
        self.closing = False
        self.cutting = False
        self.peers: set[Peer] = set()
        self.known_heads: KnownHeads[RequestHead] = KnownHeads(_KNOWN_HEADS)
        self._opened = frozenset(route.encode() for route in settings.open_routes)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._pages = frozenset(origin.encode() for origin in settings.cors_origins)
        self._watches: Iterable[gevent.Greenlet[..., None]] = ()

    def open(self) -> None:
        """Start watching the workers."""
        self._watches = [
            gevent.spawn(health.watch_notices, self.backends.all),
            *(gevent.spawn(health.watch, backend) for backend in self.backends.all),
        ]

    def close(self) -> None:
        """Hang up on idle clients; every connection in use closes after its answer.

        What is still open shortly before gunicorn kills this process is ended with an error the
        client can read.
        """
        self.closing = True
        for peer in self.peers:
            peer.end_idle()
        gevent.spawn_later(max(0.0, self.settings.drain_timeout - CUT_AHEAD), self._cut)

    def _cut(self) -> None:
        self.cutting = True
        self.admission.close()
        for peer in self.peers:
            peer.abort_work()

    def admit(self, request: Request) -> tuple[int, bytes] | None:
        """Decide on a request by its head: an answer of our own, or None to take it to a worker.

        Raises `Refusal` for a missing or wrong key, a closed route, a WebSocket of a foreign page, and
        the health of a model that is none.
        """
        if self._cors is not None and self._cors.admit(request):
            return 204, b""
        head = request.head
        if head.passed:  # the same bytes passed before, key and all
            return None
        route = head.route
        if route is None:
            route = head.route = self._route_of(head)
        if route is Route.HEALTH:
            return self._health(request)
        if route is Route.LIVENESS:
            return 200, b'{"status":"alive"}'
        check_key(head, self.settings.client_keys)
        if route is Route.CLOSED:
            raise Refusal(404, "not_found", "There is no such route here")
        if route is Route.MODELS:
            return 200, model_list(self.backends, request)
        if route is Route.TUNNEL:
            check_origin(head, self._pages)
        head.passed = True
        return None

    def _route_of(self, head: RequestHead) -> Route:
        if self.backends.models.several and lists_models(head.method, head.path):
            return Route.MODELS
        return route_of(head.method, head.path, self._opened)

    def held(self, request: Request) -> int:
        """Give how many bytes of a request's body are held before a worker is chosen."""
        if self.backends.models.several and request.head.route is Route.INFERENCE:
            return self.settings.max_body  # all of it: the name of the model may be its end
        return HELD_BODY

    def _health(self, request: Request) -> tuple[int, bytes]:
        """Ready means that at least one worker of every model answers; the body tells no topology.

        Of several models, `?model=NAME` asks for one. Another stack hears of our own workers only:
        two that name each other would each be ready because the other one is.
        """
        models = self.backends.models
        name = in_query(request) if models.several else None
        asked = [models.number(name)] if name else range(len(models.names))
        if all(self.backends.any_ready(self.backends.barred(request, number)) for number in asked):
            return 200, b'{"status":"ready"}'
        missing = "a model has no ready worker" if models.several else "no worker is ready"
        return 503, json.dumps({"status": missing}).encode()
