"""The workers, and the servers elsewhere, as the proxy sees them: where, whether ready, how loaded."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Sequence
from urllib.parse import quote

from gevent.event import Event

from vllm_stack.address import Address
from vllm_stack.proxy import via
from vllm_stack.proxy.destination import ANYWHERE, Destination, Reader, among_models, make_reader
from vllm_stack.proxy.models import Models
from vllm_stack.proxy.policy import Choice, make_choice
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.scoreboard import Row, Scoreboard
from vllm_stack.proxy.settings import ProxySettings, Server
from vllm_stack.proxy.upstream import Pool

# States in which nothing is left of what a worker kept in memory: its server has ended.
_FORGOTTEN = frozenset({"not listening", "stopped"})
# States of a worker that was told to end: no use to wait for it.
_LEAVING = frozenset({"stopping", "stopped"})
_UNSEEN = "unknown"
_HEALTH = b"/health"
_log = logging.getLogger("gunicorn.error")


def _host_header(address: Address) -> bytes:
    """Give a server's name for itself; the zone of a link-local address means something here only."""
    return re.sub(r"%[^\]]*", "", str(address)).encode()


def _own_lines(server: Server) -> bytes:
    key = b"" if server.key is None else b"authorization: Bearer %s\r\n" % server.key.encode()
    return key + via.LINE if server.remote else key


def _health_target(server: Server, models: Sequence[Sequence[str]]) -> bytes:
    """Name the target at which a server tells its health.

    One elsewhere may be a stack of several models, too: of it, only ours counts. Others do not
    mind the query.
    """
    if server.remote and len(models) > 1:
        return b"%s?model=%s" % (_HEALTH, quote(models[server.model][0], safe="").encode())
    return _HEALTH


class Backend:
    """One worker: its connections, and whether requests go to it."""

    def __init__(self, index: int, server: Server, health: bytes = _HEALTH) -> None:
        """Take a server, and the target at which it tells its health."""
        self.index = index
        self.name = server.name
        self.address = server.address
        self.remote = server.remote
        self.gpus = server.gpus
        # The number of the model that it has.
        self.model = server.model
        # What a request gets that goes here. A server elsewhere may choose by the Host; for a worker
        # the client's goes along, because it builds redirects from it.
        self.host = _host_header(server.address) if server.remote else None
        self.lines = _own_lines(server)
        self.health = health
        self.pool = Pool(self.address, server.max_idle)
        self.ready = False
        self.state = _UNSEEN
        self._notice = server.stopping
        self._order = server.drained
        # Set to have the worker probed now instead of at the next tick.
        self.look = Event()
        # Called when requests begin or cease to go to it.
        self.on_turn: Callable[[], None] = lambda: None

    @property
    def unseen(self) -> bool:
        """Nobody has looked at it yet."""
        return self.state == _UNSEEN

    def is_stopping(self) -> bool:
        """The worker was told to stop: it still answers, but only to end what it has begun."""
        return self._notice is not None and self._notice.exists()

    def is_drained(self) -> bool:
        """An operator ordered that it gets nothing new, however well it is."""
        return self._order is not None and self._order.exists()

    def mark(self, ready: bool, state: str) -> None:
        """Note what was seen of the worker, and say so when it changed."""
        if state != self.state:
            _log.info("%s: %s -> %s", self.name, self.state, state)
        turned = ready is not self.ready
        self.ready, self.state = ready, state
        if turned:
            self.on_turn()

    def suspect(self, state: str) -> None:
        """Take the worker out of the choice until a probe finds it well."""
        self.mark(False, state)
        self.look.set()


class Backends:
    """All workers, and the choice among those that are ready."""

    def __init__(self, settings: ProxySettings, board: Scoreboard, row: Row) -> None:
        self.all = tuple(
            Backend(index, server, _health_target(server, settings.models))
            for index, server in enumerate(settings.servers)
        )
        self._remotes = frozenset(backend.index for backend in self.all if backend.remote)
        # A pure balancer has no worker to keep a request for.
        self._mixed = 0 < len(self._remotes) < len(self.all)
        self.models = Models(settings)
        # Else nothing is ever barred.
        self.bars = self._mixed or self.models.several
        self._board = board
        self._leases = row.leases
        self._open = row.open
        self._limit = settings.max_inflight
        names = [backend.name for backend in self.all]
        # One for each model, because a policy goes by what it did before, and one for what is about none.
        self._choices: list[Choice] = [
            make_choice(settings.policy, names, board.homes) for _ in self.models.others
        ]
        # How many requests of this process are in flight with a routing key.
        self._asking: dict[int, int] = {}
        # Says where a request would like to go; asked once for each, however often it is sent.
        self.destination: Reader = (
            make_reader(settings.policy, settings.session_header) if len(self.all) > 1 else lambda _: ANYWHERE
        )
        if self.models.several:
            self.destination = among_models(self.destination, self.models.of)
        # The indices of those that requests go to.
        self._ready: list[int] = []
        # Called when there are others than before.
        self.on_turn: Callable[[], None] = lambda: None
        for backend in self.all:
            backend.on_turn = self._turn

    def _turn(self) -> None:
        self._ready = [backend.index for backend in self.all if backend.ready]
        for backend in self.all:
            self._open[backend.index] = backend.ready
        self.on_turn()

    def take(self, avoid: Collection[int], destination: Destination, limited: bool) -> Backend | None:
        """Choose a ready worker and lease it, None if there is none; `limited`: none that is full."""
        candidates = self._ready
        if avoid:
            candidates = [index for index in candidates if index not in avoid]
        loads = self._board.loads()
        if limited and self._limit is not None:
            candidates = [index for index in candidates if loads[index] < self._limit]
        if not candidates:
            return None
        key = destination.key
        if key is None and len(candidates) == 1:
            index = candidates[0]
        else:
            index = self._choices[destination.model](candidates, loads, key, key in self._asking)
        self._leases[index] += 1
        if key is not None:
            self._asking[key] = self._asking.get(key, 0) + 1
        return self.all[index]

    def another_ready(self, avoid: Collection[int], than: Backend) -> bool:
        return any(b.ready and b is not than and b.index not in avoid for b in self.all)

    def may_come(self, avoid: Collection[int], out: bool = True) -> bool:
        """Tell whether waiting can help: a worker is full, or is `out` for a reason that may pass."""
        return any(b.index not in avoid and (b.ready or (out and b.state not in _LEAVING)) for b in self.all)

    def another_may_know(self, asked: Collection[int]) -> bool:
        """Tell whether a stored response may be with a worker, ready or not, that was not asked.

        A server elsewhere that cannot be reached may run all the same.
        """
        return any(b.index not in asked and (b.remote or b.state not in _FORGOTTEN) for b in self.all)

    def barred(self, request: Request, model: int) -> frozenset[int]:
        """Name whom this request for a model must not go to: all that do not have it, to begin with.

        What another stack sent stays with our own workers: two boxes that name each other would
        hand a request back and forth.
        """
        others = self.models.others[model]
        return others | self._remotes if self._mixed and via.is_from_stack(request) else others

    def any_ready(self, barred: Collection[int] = ()) -> bool:
        return any(index not in barred for index in self._ready)

    def release(self, backend: Backend, destination: Destination) -> None:
        self._leases[backend.index] -= 1
        if destination.key is not None:
            left = self._asking.pop(destination.key) - 1
            if left:
                self._asking[destination.key] = left
