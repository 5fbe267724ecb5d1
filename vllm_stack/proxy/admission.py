"""Letting requests in: at once where a worker is free, else in the order they came, or not in time.

A request waits for a worker that is at its limit or still starting. Who is first in line is given
what becomes free by whoever frees it, so nobody who comes later can be quicker. A client that
leaves gives up its place in line.
"""

from __future__ import annotations

import time
from bisect import insort

from gevent import get_hub
from gevent.event import Event
from msgspec import Struct

from vllm_stack.proxy.backends import Backend, Backends
from vllm_stack.proxy.destination import Destination
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.scoreboard import WAITED, Row

# Seconds between looks while somebody waits, beside being told: a process may die before it tells.
_LOOK = 0.25
NOBODY: frozenset[int] = frozenset()
# Whether the limit is minded, and whom not to go to. Those of one kind may go to the same workers.
_Kind = tuple[bool, frozenset[int]]


class Ticket(Struct, eq=False):
    """One request's claim to a worker, for as long as it is sent around.

    `limited` tells that it counts against the limit, `avoid` whom it must not go to, `refused` who
    did not listen: they may be asked again after a wait. Its place in line is by `since`, which it
    keeps when it has to be sent again.
    """

    destination: Destination
    limited: bool
    avoid: frozenset[int] = NOBODY
    refused: frozenset[int] = NOBODY
    # Nanoseconds; set when it first asks for one of a limited number of places, or has to wait.
    since: int = 0
    # Set when it first has to wait.
    deadline: float = 0.0
    backend: Backend | None = None
    # Set while it is in line.
    kind: _Kind | None = None
    _called: Event | None = None

    def wait(self, seconds: float) -> None:
        """Wait until a worker was given, or there is no point in waiting any more."""
        self._called = Event()
        self._called.wait(seconds)

    def give(self, backend: Backend) -> None:
        self.backend = backend
        self.abort()

    def abort(self) -> None:
        """End the wait, from anywhere."""
        if self._called is not None:
            self._called.set()


def _since(ticket: Ticket) -> int:
    return ticket.since


class Admission:
    """The line of one process."""

    def __init__(self, backends: Backends, row: Row, limit: int | None, timeout: float) -> None:
        self._backends = backends
        self._row = row
        self._turn = row.turn
        self._limited = limit is not None
        self._timeout = timeout
        # In the order they came, none of them empty. If the first of a kind cannot go, none of it can.
        self._lines: dict[_Kind, list[Ticket]] = {}
        # The kind of each model whose requests take any place there is for it.
        self._plain: list[_Kind] = [(True, others) for others in backends.models.others]
        self._listening = False
        self._closed = False
        loop = get_hub().loop
        self._bell = loop.io(self._turn.bell, 1)
        self._clock = loop.timer(_LOOK, _LOOK)
        backends.on_turn = self.serve

    def enter(self, ticket: Ticket, peer: Peer, patient: bool = True) -> Backend | None:
        """Give a leased worker, at once or after a wait; None if there is none in time.

        Who is not `patient` waits for a worker that is full, not for one that starts. Raises
        `ClientGone` for a client that left while it waited.
        """
        if self._closed:
            return None
        if not (self._lines or self._limited):  # the usual case
            backend = self._backends.take(ticket.avoid, ticket.destination, False)
        else:
            backend = None if self._lines and ticket.limited else self._take(ticket)
        if backend is not None:
            return backend
        if self._timeout <= 0 or not self._backends.may_come(ticket.avoid - ticket.refused, patient):
            return None
        return self._wait(ticket, peer)

    def leave(self, backend: Backend, ticket: Ticket) -> None:
        """Give a worker back; whoever is first in line gets it."""
        self._backends.release(backend, ticket.destination)
        if self._limited:
            if self._lines:
                self.serve()
            self._turn.tell(backend.model)

    def serve(self) -> None:
        """Give what is free to those who have waited longest."""
        stuck: set[_Kind | None] = set()
        while firsts := [line[0] for kind, line in self._lines.items() if kind not in stuck]:
            ticket = min(firsts, key=_since)
            backend = self._take(ticket)
            if backend is None:
                stuck.add(ticket.kind)
            else:
                self._quit(ticket)
                ticket.give(backend)

    def close(self) -> None:
        """Let nobody in any more, and end all waits."""
        self._closed = True
        for ticket in [ticket for line in self._lines.values() for ticket in line]:
            self._quit(ticket)
            ticket.abort()

    def _take(self, ticket: Ticket) -> Backend | None:
        """Choose and lease in one step."""
        if not self._limited or not ticket.limited:
            return self._backends.take(ticket.avoid, ticket.destination, False)
        ticket.since = ticket.since or time.monotonic_ns()
        with self._turn.alone():
            if self._turn.is_ours(ticket.since, ticket.destination.model):
                return self._backends.take(ticket.avoid, ticket.destination, True)
        self._turn.pass_on(ticket.destination.model)
        return None

    def _wait(self, ticket: Ticket, peer: Peer) -> Backend | None:
        now = time.monotonic()
        ticket.avoid -= ticket.refused
        ticket.refused = NOBODY
        self._join(ticket)
        peer.work = ticket
        try:
            # Something may have become free just before others could know that we wait.
            self.serve()
            if ticket.backend is None and not peer.gone:
                if not ticket.deadline:
                    ticket.deadline = now + self._timeout
                    self._row.count(WAITED)
                ticket.wait(max(0.0, ticket.deadline - now))
            if peer.gone:
                raise ClientGone
            backend, ticket.backend = ticket.backend, None
            return backend
        finally:
            peer.work = None
            self._quit(ticket)
            if ticket.backend is not None:
                backend, ticket.backend = ticket.backend, None
                self.leave(backend, ticket)

    def _join(self, ticket: Ticket) -> None:
        ticket.since = ticket.since or time.monotonic_ns()
        kind = ticket.kind = (ticket.limited, ticket.avoid)
        insort(self._lines.setdefault(kind, []), ticket, key=_since)
        self._publish(ticket.destination.model)

    def _quit(self, ticket: Ticket) -> None:
        """Take it out of its line, if it is in one."""
        if ticket.kind is None:
            return
        line = self._lines[ticket.kind]
        line.remove(ticket)
        if not line:
            del self._lines[ticket.kind]
        ticket.kind = None
        self._publish(ticket.destination.model)

    def _publish(self, model: int) -> None:
        """Tell the other processes of our lines, and listen to them while there is one.

        What has changed is about one model.
        """
        plain = self._lines.get(self._plain[model])
        waiting = sum(map(len, self._lines.values()))
        choosy = waiting > sum(len(self._lines[kind]) for kind in self._plain if kind in self._lines)
        self._turn.publish(plain[0].since if plain else 0, waiting, choosy, model)
        if not plain:
            self._turn.pass_on(model)
        if bool(self._lines) == self._listening:
            return
        self._listening = not self._listening
        if self._listening:
            self._bell.start(self._on_bell)
            self._clock.start(self._look)
        else:
            self._bell.stop()
            self._clock.stop()

    def _on_bell(self) -> None:
        self._turn.hush()
        self.serve()

    def _look(self) -> None:
        """See for ourselves, and send away who waits for nothing: all workers may have been stopped."""
        self._turn.show_life()
        self.serve()
        for (_, avoid), line in self._lines.items():
            if not self._backends.may_come(avoid):
                for ticket in line:
                    ticket.abort()
