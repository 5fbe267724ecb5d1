"""Letting requests in: at once where a worker is free, else in the order they came, or not in time.

A request waits for a worker that is at its limit or still starting. Who is first in line is given
what becomes free by whoever frees it, so nobody who comes later can be quicker. A client that
leaves gives up its place in line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from gevent import get_hub
from gevent.event import Event

from vllm_stack.proxy.backends import Backend, Backends
from vllm_stack.proxy.destination import Destination
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.scoreboard import WAITED, Row

# Seconds between looks while somebody waits, beside being told: a process may die before it tells.
_LOOK = 0.25


class Ticket:
    """One request's claim to a worker, for as long as it is sent around.

    `limited` tells that it counts against the limit, `avoid` whom it must not go to, `refused` who
    did not listen: they may be asked again after a wait.
    """

    __slots__ = ("_called", "avoid", "backend", "deadline", "destination", "limited", "refused", "since")

    def __init__(self, destination: Destination, limited: bool, avoid: Iterable[int] = ()) -> None:
        self.destination = destination
        self.limited = limited
        self.avoid = set(avoid)
        self.refused: set[int] = set()
        # Set when it first has to wait.
        self.since = 0
        self.deadline = 0.0
        self.backend: Backend | None = None
        self._called: Event | None = None

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


class Admission:
    """The line of one process."""

    def __init__(self, backends: Backends, row: Row, limit: int | None, timeout: float) -> None:
        self._backends = backends
        self._row = row
        self._turn = row.turn
        self._limited = limit is not None
        self._timeout = timeout
        # In the order they came. Those in `_line` are all alike: if the first cannot go, none can.
        # `_others` have a worker to avoid, or no limit to mind.
        self._line: dict[Ticket, None] = {}
        self._others: dict[Ticket, None] = {}
        self._listening = False
        loop = get_hub().loop
        self._bell = loop.io(self._turn.bell, 1)
        self._clock = loop.timer(_LOOK, _LOOK)
        for backend in backends.all:
            backend.on_ready = self.serve

    def enter(self, ticket: Ticket, peer: Peer, patient: bool = True) -> Backend | None:
        """Give a leased worker, at once or after a wait; None if there is none in time.

        Raises `ClientGone` for a client that left while it waited.
        """
        if not (self._line and ticket.limited):
            backend = self._take(ticket)
            if backend is not None:
                return backend
        if not patient or self._timeout <= 0 or not self._backends.may_come(ticket.avoid - ticket.refused):
            return None
        return self._wait(ticket, peer)

    def leave(self, backend: Backend, ticket: Ticket) -> None:
        """Give a worker back; whoever is first in line gets it."""
        self._backends.release(backend, ticket.destination)
        if self._limited:
            if self._line or self._others:
                self.serve()
            self._turn.pass_on()

    def serve(self) -> None:
        """Give what is free to those who have waited longest."""
        for ticket in list(self._others):
            self._serve(ticket, self._others)
        while self._line and self._serve(next(iter(self._line)), self._line):
            pass

    def _serve(self, ticket: Ticket, line: dict[Ticket, None]) -> bool:
        backend = self._take(ticket)
        if backend is None:
            return False
        del line[ticket]
        self._publish()
        ticket.give(backend)
        return True

    def _take(self, ticket: Ticket) -> Backend | None:
        """Choose and lease in one step."""
        if not self._limited or not ticket.limited:
            return self._choose(ticket)
        with self._turn:
            if ticket.avoid or self._turn.is_ours(ticket.since or time.monotonic_ns()):
                return self._choose(ticket)
        self._turn.pass_on()
        return None

    def _choose(self, ticket: Ticket) -> Backend | None:
        backend = self._backends.choose(ticket.avoid, ticket.destination, ticket.limited)
        if backend is not None:
            self._backends.lease(backend, ticket.destination)
        return backend

    def _wait(self, ticket: Ticket, peer: Peer) -> Backend | None:
        now = time.monotonic()
        if not ticket.since:
            ticket.since = time.monotonic_ns()
            ticket.deadline = now + self._timeout
            self._row.count(WAITED)
        ticket.avoid -= ticket.refused
        ticket.refused.clear()
        line = self._others if ticket.avoid or not ticket.limited else self._line
        line[ticket] = None
        self._publish()
        peer.work = ticket
        try:
            # Something may have become free just before others could know that we wait.
            self.serve()
            if ticket.backend is None and not peer.gone:
                ticket.wait(max(0.0, ticket.deadline - now))
            if peer.gone:
                raise ClientGone
            backend, ticket.backend = ticket.backend, None
            return backend
        finally:
            peer.work = None
            if line.pop(ticket, ticket) is None:
                self._publish()
            if ticket.backend is not None:
                backend, ticket.backend = ticket.backend, None
                self.leave(backend, ticket)

    def _publish(self) -> None:
        """Tell the other processes of our line, and listen to them while there is one."""
        first = next(iter(self._line), None)
        self._turn.publish(first.since if first else 0, len(self._line) + len(self._others))
        if first is None:
            self._bell.stop()
            self._clock.stop()
            self._listening = False
            self._turn.pass_on()
        elif not self._listening:
            self._bell.start(self._on_bell)
            self._clock.start(self.serve)
            self._listening = True

    def _on_bell(self) -> None:
        self._turn.hush()
        self.serve()
