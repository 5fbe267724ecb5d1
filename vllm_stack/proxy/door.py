"""The public door of one proxy process: what all its connections share."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable

import gevent

from vllm_stack.proxy import health
from vllm_stack.proxy.access_log import AccessLog
from vllm_stack.proxy.accounts import Accounts
from vllm_stack.proxy.admission import Admission
from vllm_stack.proxy.auth import check_key
from vllm_stack.proxy.backends import Backends
from vllm_stack.proxy.cors import Cors
from vllm_stack.proxy.handshake import check_origin
from vllm_stack.proxy.key_usage import KeyRow, KeyUsage
from vllm_stack.proxy.keyring import Keyring
from vllm_stack.proxy.known_heads import KnownHeads
from vllm_stack.proxy.model_list import model_list
from vllm_stack.proxy.model_name import in_query
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import HELD_BODY, Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routes import Route, lists_models, route_of
from vllm_stack.proxy.scoreboard import UNLOGGED, Row, Scoreboard
from vllm_stack.proxy.settings import AccessLogSettings, ProxySettings

# Seconds before the end of the drain at which open answers are cut.
CUT_AHEAD = 1.0
# Seconds.
FIRST_LOOK = 1.0
# Seconds between two looks of a process that retires at whether it is in the way.
CROWD_INTERVAL = 1.0
_KNOWN_HEADS = 1024


class Door:
    """Settings, workers and counters.

    `closing` turns true when answers begin to tell clients that their connection ends, `closed` when a
    shutdown begins, `cutting` when its patience is over.
    """

    def __init__(
        self, settings: ProxySettings, board: Scoreboard, row: Row, key_row: KeyRow | None = None
    ) -> None:
        """Open nothing yet. Without a `key_row` a process counts what keys use for itself alone."""
        self.settings = settings
        self.board = board
        self.row = row
        self.backends = Backends(settings, board, row)
        self.admission = Admission(self.backends, row, settings.max_inflight, settings.queue_timeout)
        self.log = logging.getLogger("gunicorn.error")
        self.keys = Keyring(settings.keys, key_row or KeyUsage(1).row(0), self.log)
        self.access_log = _access_log(settings.access_log, row)
        self.accounts = Accounts(row.tally, self.access_log, self.backends.all, settings.models)
        self.closing = False
        self.cutting = False
        self.closed = False
        self.peers: set[Peer] = set()
        self.known_heads: KnownHeads[RequestHead] = KnownHeads(_KNOWN_HEADS)
        self._opened = frozenset(route.encode() for route in settings.open_routes)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._pages = frozenset(origin.encode() for origin in settings.cors_origins)
        self._watches: Iterable[gevent.Greenlet[..., None]] = ()

    def open(self) -> None:
        """Start watching the workers and the keys; returns when each was seen once, or FIRST_LOOK is over.

        Else the first clients after a reload would hear that no worker is ready.
        """
        self._watches = [
            gevent.spawn(self.keys.watch),
            gevent.spawn(self.accounts.run),
            *([gevent.spawn(self.access_log.run)] if self.access_log is not None else []),
            gevent.spawn(health.watch_notices, self.backends.all),
            *(gevent.spawn(health.watch, backend) for backend in self.backends.all),
        ]
        end = time.monotonic() + FIRST_LOOK
        while time.monotonic() < end and any(backend.unseen for backend in self.backends.all):
            gevent.sleep(0.01)

    def close(self) -> None:
        """Hang up on idle clients; every connection in use closes after its answer.

        What is still open shortly before gunicorn kills this process is ended with an error the
        client can read.
        """
        if self.closed:
            return
        self.closing = self.closed = True
        for peer in self.peers:
            peer.end_idle()
        gevent.spawn_later(max(0.0, self.settings.drain_timeout - CUT_AHEAD), self._cut)

    def finish(self) -> None:
        """Write down what there is to write of the requests that have ended."""
        self.accounts.book()
        if self.access_log is not None:
            self.access_log.flush()

    def retire(self, seconds: float) -> None:
        """Serve the connections there are to their end, `seconds` at most, because others take the new ones.

        A client may be about to send on an idle one, and none would be broken but for us: it is told to
        connect anew with its next answer.
        """
        if not self.closing:
            self.closing = True
            gevent.spawn(self._stay, seconds)

    def _stay(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.board.crowded:
            gevent.sleep(CROWD_INTERVAL)
        self.close()

    def _cut(self) -> None:
        self.cutting = True
        self.admission.close()
        for peer in self.peers:
            peer.abort_work()

    def admit(self, request: Request) -> tuple[int, bytes] | None:
        """Decide on a request by its head: an answer of our own, or None to take it to a worker.

        Raises `Refusal` for a missing or wrong key, one that is at its limit, a closed route, a WebSocket
        of a foreign page, and the health of a model that is none.
        """
        if self._cors is not None and self._cors.admit(request):
            return 204, b""
        head = request.head
        if head.passed == self.keys.epoch:  # the same bytes passed before, key and all
            self._let_in(request)
            return None
        route = head.route
        if route is None:
            route = head.route = self._route_of(head)
        if route is Route.HEALTH:
            return self._health(request)
        if route is Route.LIVENESS:
            return 200, b'{"status":"alive"}'
        head.caller = check_key(head, self.keys)
        if route is Route.CLOSED:
            raise Refusal(404, "not_found", "There is no such route here")
        if route is Route.TUNNEL:
            check_origin(head, self._pages)
        self._let_in(request)
        if route is Route.MODELS:
            return 200, model_list(self.backends, request)
        head.passed = self.keys.epoch
        return None

    @staticmethod
    def _let_in(request: Request) -> None:
        """Count a request for the holder of its key, until it has ended; raises `Refusal` at a limit."""
        caller = request.head.caller
        if caller is not None:
            caller.enter()
            request.caller = caller

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


def _access_log(settings: AccessLogSettings | None, row: Row) -> AccessLog | None:
    if settings is None:
        return None

    def lost(lines: int) -> None:
        row.totals[UNLOGGED] += lines

    return AccessLog(settings.path, settings.most, settings.backups, lost)
