"""The line, step by step: two processes' lines live in this one, on rows of one board."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import gevent
import pytest

from tests.support.polling import throughout, until
from vllm_stack.address import TcpAddress
from vllm_stack.proxy import admission as admission_module
from vllm_stack.proxy.admission import Admission, Ticket
from vllm_stack.proxy.backends import Backend, Backends
from vllm_stack.proxy.destination import ANYWHERE, Destination
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.scoreboard import Row, Scoreboard
from vllm_stack.proxy.settings import ProxySettings, Server


class FakePeer:
    """A client as the line sees it."""

    def __init__(self) -> None:
        self.gone = False
        self.work: Any = None

    def leave(self) -> None:
        self.gone = True
        if self.work is not None:
            self.work.abort()


class Process:
    """One proxy process's line, and what became of those who entered."""

    def __init__(
        self, board: Scoreboard, workers: int, limit: int | None, timeout: float, models: int = 1
    ) -> None:
        servers = tuple(
            Server(f"worker-{n}", TcpAddress("127.0.0.1", 1 + n), None, 60.0, None, n % models)
            for n in range(workers)
        )
        unused: dict[str, Any] = dict.fromkeys(ProxySettings.__dataclass_fields__)
        given: dict[str, Any] = {
            "servers": servers,
            "policy": "least-loaded",
            "session_header": "x",
            "max_inflight": limit,
        }
        given["models"] = [[f"model-{n}"] for n in range(models)]
        self.row: Row = board.row(board.take_row())
        self.backends = Backends(ProxySettings(**{**unused, **given}), board, self.row)
        self.admission = Admission(self.backends, self.row, limit, timeout)
        self.ready(*range(workers))

    def ready(self, *workers: int, state: str = "ready") -> None:
        for worker in workers:
            self.backends.all[worker].mark(state == "ready", state)

    def take(self, ticket: Ticket | None = None, patient: bool = True) -> Backend | None:
        ticket = ticket or Ticket(ANYWHERE, True)
        return self.admission.enter(ticket, FakePeer(), patient)  # type: ignore[arg-type]


class Visit:
    """One request that enters in a greenlet of its own."""

    def __init__(self, process: Process, served: list[str], name: str, **ticket: Any) -> None:
        self.process, self.served, self.name = process, served, name
        model = ticket.pop("model", 0)
        others = process.backends.models.others[model]
        avoid = others | frozenset(ticket.pop("avoid", ()))
        self.ticket = Ticket(Destination(model=model), ticket.pop("limited", True), avoid)
        self.peer = FakePeer()
        self.patient = ticket.pop("patient", True)
        self.begin()

    def begin(self) -> None:
        """Enter; again after a leave, as a retry does."""
        self.greenlet = gevent.spawn(self._enter)
        gevent.sleep(0)

    def _enter(self) -> Backend | None:
        backend = self.process.admission.enter(self.ticket, self.peer, self.patient)  # type: ignore[arg-type]
        self.served.append(self.name if backend else f"{self.name}: nobody")
        return backend

    @property
    def backend(self) -> Backend | None:
        backend: Backend | None = self.greenlet.get(timeout=5)
        return backend

    def leave(self) -> None:
        backend = self.backend
        assert backend
        self.process.admission.leave(backend, self.ticket)


class House:
    """Processes before the same workers."""

    def __init__(
        self, workers: int, processes: int, limit: int | None, timeout: float, models: int = 1
    ) -> None:
        self.board = Scoreboard(processes, workers, models + 1 if models > 1 else 1)
        self.processes = [Process(self.board, workers, limit, timeout, models) for _ in range(processes)]
        self.served: list[str] = []

    def visit(self, process: int, name: str, **ticket: Any) -> Visit:
        return Visit(self.processes[process], self.served, name, **ticket)

    def settle(self, *served: str) -> None:
        """The line has moved, and only so far."""
        until(lambda: len(self.served) >= len(served), 5, f"{served} were served", pause=gevent.sleep)
        throughout(lambda: self.served == list(served), 0.02, f"only {served}", pause=gevent.sleep)

    def waiting(self) -> int:
        return self.board.turns.waiting()


MakeHouse = Callable[..., House]


@pytest.fixture
def house() -> Iterator[MakeHouse]:
    houses: list[House] = []

    def make(
        workers: int = 1,
        processes: int = 1,
        limit: int | None = 1,
        timeout: float = 10.0,
        models: int = 1,
    ) -> House:
        houses.append(House(workers, processes, limit, timeout, models))
        return houses[-1]

    yield make
    for made in houses:
        assert made.waiting() == 0
        assert not any(made.board.loads())
        for process in made.processes:
            process.admission._bell.close()
            process.admission._clock.close()
        for descriptor in made.board.turns.bells:
            os.close(descriptor)
        made.board.turns.lock.close()


# ------------------------------------------------------------------ order


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_they_are_served_in_the_order_they_came_whichever_process_they_came_to(
    house: MakeHouse, processes: int
) -> None:
    full = house(processes=processes)
    visits = [full.visit(number % processes, str(number)) for number in range(9)]
    assert full.waiting() == 8
    for number, visit in enumerate(visits):
        full.settle(*map(str, range(number + 1)))
        visit.leave()


def test_a_place_goes_to_the_first_in_line_in_the_moment_it_becomes_free(house: MakeHouse) -> None:
    full = house(processes=2)
    first, second = full.visit(0, "first"), full.visit(0, "second")
    first.leave()
    third = full.visit(1, "third")
    full.settle("first", "second")
    second.leave()
    full.settle("first", "second", "third")
    third.leave()


@pytest.mark.parametrize("process", [0, 1, 2])
def test_a_newcomer_does_not_take_what_the_first_in_line_has_not_heard_of(
    house: MakeHouse, process: int
) -> None:
    full = house(processes=3)
    holder, waiting = full.visit(0, "holder"), full.visit(1, "waiting")
    holder.leave()  # process 1 hears the bell when the hub looks
    newcomer = Visit(full.processes[process], full.served, "newcomer")
    full.settle("holder", "waiting")
    waiting.leave()
    full.settle("holder", "waiting", "newcomer")
    newcomer.leave()


def test_as_many_go_at_once_as_there_are_places(house: MakeHouse) -> None:
    full = house(workers=2, processes=2, limit=2)
    visits = [full.visit(number % 2, str(number)) for number in range(6)]
    full.settle("0", "1", "2", "3")
    assert full.board.loads() == [2, 2]
    for visit in visits:
        visit.leave()


def test_a_request_that_must_be_sent_again_keeps_its_place(house: MakeHouse) -> None:
    """It was chosen before those who wait: also when nobody listened and it may ask anybody again."""
    full = house(workers=2)
    first, second = full.visit(0, "first"), full.visit(0, "second")
    third = full.visit(0, "third")
    failed = first.backend
    assert failed
    failed.mark(False, "not listening")
    first.leave()
    first.ticket.avoid |= {failed.index}
    first.ticket.refused |= {failed.index}
    first.begin()
    full.settle("first", "second")
    assert full.waiting() == 2
    second.leave()
    full.settle("first", "second", "first")
    first.leave()
    full.settle("first", "second", "first", "third")
    failed.mark(True, "ready")
    third.leave()


def test_a_retry_that_waits_for_one_worker_hears_from_other_processes_at_once(house: MakeHouse) -> None:
    full = house(workers=2, processes=2)
    holders = [full.visit(1, "holder"), full.visit(1, "holder")]
    retry = full.visit(0, "retry", avoid={0})
    full.processes[0].admission._clock.stop()
    one = next(holder for holder in holders if holder.backend.index == 1)  # type: ignore[union-attr]
    one.leave()
    full.settle("holder", "holder", "retry")
    assert retry.backend is full.processes[0].backends.all[1]
    next(holder for holder in holders if holder is not one).leave()
    retry.leave()


def test_a_request_that_avoids_a_worker_holds_up_nobody_who_does_not(house: MakeHouse) -> None:
    full = house(workers=2, processes=2)
    holders = [full.visit(1, "holder"), full.visit(1, "holder")]
    retry = full.visit(0, "retry", avoid={0})
    after = full.visit(0, "after")
    zero = next(holder for holder in holders if holder.backend.index == 0)  # type: ignore[union-attr]
    zero.leave()
    full.settle("holder", "holder", "after")
    next(holder for holder in holders if holder is not zero).leave()
    full.settle("holder", "holder", "after", "retry")
    after.leave()
    retry.leave()


def test_a_request_that_avoids_a_worker_from_the_start_waits_its_turn(house: MakeHouse) -> None:
    """Those of another stack never go to servers elsewhere: that makes them no more urgent."""
    full = house(workers=2, processes=2)
    holders = [full.visit(0, "holder"), full.visit(0, "holder")]
    before = full.visit(1, "before")
    barred = full.visit(0, "barred", avoid={1})
    zero = next(holder for holder in holders if holder.backend.index == 0)  # type: ignore[union-attr]
    zero.leave()
    full.settle("holder", "holder", "before")
    before.leave()
    full.settle("holder", "holder", "before", "barred")
    for visit in (*(holder for holder in holders if holder is not zero), barred):
        visit.leave()


def test_what_has_no_limit_passes_a_full_house(house: MakeHouse) -> None:
    full = house()
    holder, waiting = full.visit(0, "holder"), full.visit(0, "waiting")
    models = full.visit(0, "models", limited=False)
    full.settle("holder", "models")
    models.leave()
    holder.leave()
    waiting.leave()


def test_what_has_no_limit_is_not_held_up_by_what_has_one_when_a_worker_comes(house: MakeHouse) -> None:
    full = house()
    full.processes[0].ready(0, state="not listening")
    chats = [full.visit(0, f"chat {number}") for number in range(2)]
    models = full.visit(0, "models", limited=False)
    full.processes[0].ready(0)
    full.settle("chat 0", "models")
    models.leave()
    for chat in chats:
        chat.leave()


# ------------------------------------------------------------------ the end of a wait


def test_it_ends_in_time_with_nobody(house: MakeHouse) -> None:
    full = house(timeout=0.05)
    holder = full.visit(0, "holder")
    full.visit(0, "late")
    full.settle("holder", "late: nobody")
    assert full.board.totals()["waited"] == 1
    holder.leave()


def test_a_patience_of_nothing_is_no_wait(house: MakeHouse) -> None:
    full = house(timeout=0.0)
    holder = full.visit(0, "holder")
    assert full.processes[0].take() is None
    assert full.board.totals()["waited"] == 0
    holder.leave()


def test_nobody_is_let_in_any_more_once_the_line_is_closed(house: MakeHouse) -> None:
    full = house()
    holder, waiting = full.visit(0, "holder"), full.visit(0, "waiting")
    full.processes[0].admission.close()
    holder.leave()  # in the same moment: the place is for nobody
    full.settle("holder", "waiting: nobody")
    assert waiting.backend is None
    assert full.processes[0].take() is None


@pytest.mark.parametrize("state", ["stopping", "stopped"])
def test_a_worker_that_was_told_to_stop_is_not_waited_for(house: MakeHouse, state: str) -> None:
    full = house()
    holder = full.visit(0, "holder")
    early = full.visit(0, "early")
    assert full.waiting() == 1
    full.processes[0].ready(0, state=state)
    assert full.processes[0].take() is None
    assert early.backend is None
    holder.leave()


def test_who_may_not_wait_for_a_worker_that_starts_waits_for_one_that_is_full(house: MakeHouse) -> None:
    full = house(workers=2)
    full.processes[0].ready(1, state="not listening")
    holder = full.visit(0, "holder")
    lost = Ticket(ANYWHERE, True, frozenset({0}))
    assert full.processes[0].take(lost, patient=False) is None
    asking = full.visit(0, "asking", patient=False, avoid={1})
    assert full.waiting() == 1
    holder.leave()
    full.settle("holder", "asking")
    asking.leave()


def test_a_client_that_leaves_moves_the_others_up(house: MakeHouse) -> None:
    full = house(processes=2)
    holder = full.visit(0, "holder")
    leaver, stayer = full.visit(0, "leaver"), full.visit(1, "stayer")
    leaver.peer.leave()
    with pytest.raises(ClientGone):
        leaver.greenlet.get(timeout=5)
    assert full.waiting() == 1
    holder.leave()
    full.settle("holder", "stayer")
    stayer.leave()


@pytest.mark.parametrize("other", [0, 1])
def test_a_client_that_leaves_as_its_turn_comes_gives_it_to_the_next(house: MakeHouse, other: int) -> None:
    full = house(processes=2)
    holder = full.visit(0, "holder")
    leaver, stayer = full.visit(0, "leaver"), full.visit(other, "stayer")
    holder.leave()
    assert leaver.ticket.backend is not None  # it has the place, and does not know it yet
    leaver.peer.leave()
    with pytest.raises(ClientGone):
        leaver.greenlet.get(timeout=5)
    full.settle("holder", "stayer")
    stayer.leave()


def test_a_line_whose_process_died_holds_up_nobody(house: MakeHouse) -> None:
    full = house(processes=2)
    holder, lost = full.visit(0, "holder"), full.visit(0, "lost")
    stayer = full.visit(1, "stayer")
    dead = full.processes[0].admission
    dead._bell.stop()
    dead._clock.stop()
    dead._lines.clear()
    lost.greenlet.kill()
    full.board.give_back(1)
    full.settle("holder", "stayer")
    assert holder.backend is not None
    stayer.leave()


# ------------------------------------------------------------------ without a limit


def test_without_a_limit_all_who_wait_for_a_start_go_at_once(house: MakeHouse) -> None:
    full = house(limit=None)
    full.processes[0].ready(0, state="not listening")
    visits = [full.visit(0, str(number)) for number in range(5)]
    assert (full.waiting(), full.served) == (5, [])
    full.processes[0].admission._clock.stop()  # nobody has to look for it
    full.processes[0].ready(0)
    full.settle("0", "1", "2", "3", "4")
    assert full.board.totals()["waited"] == 5
    for visit in visits:
        visit.leave()


def test_without_a_limit_a_request_pays_nothing_for_the_line(
    house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = house(limit=None)
    monkeypatch.setattr(full.processes[0].admission, "_turn", None)  # any use of it fails
    visit = full.visit(0, "one")
    full.settle("one")
    visit.leave()
    assert visit.ticket.since == 0


# ------------------------------------------------------------------ several models


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_each_model_is_served_in_the_order_its_own_came(house: MakeHouse, processes: int) -> None:
    full = house(workers=2, processes=processes, models=2)
    visits = [full.visit(number % processes, str(number), model=number // 3 % 2) for number in range(12)]
    assert full.waiting() == 10
    served = ["0", "3"]
    full.settle(*served)
    for model in (1, 0):  # all of one, while the other one moves by nobody
        numbers = [number for number in range(12) if number // 3 % 2 == model]
        for number, after in pairwise(numbers):
            visits[number].leave()
            served.append(str(after))
            full.settle(*served)
        visits[numbers[-1]].leave()


@pytest.mark.parametrize("model", [0, 1])
def test_a_place_of_a_model_is_told_to_the_process_that_waits_for_it(
    house: MakeHouse, model: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_module, "_LOOK", 60.0)  # nobody looks: only who is told hears of it
    full = house(workers=2, processes=3, models=2)
    holders = [full.visit(0, f"holder {n}", model=n) for n in range(2)]
    waiters = [full.visit(1 + n, f"waiter {n}", model=n) for n in range(2)]
    full.settle("holder 0", "holder 1")
    holders[model].leave()
    full.settle("holder 0", "holder 1", f"waiter {model}")
    waiters[model].leave()
    holders[1 - model].leave()
    full.settle("holder 0", "holder 1", f"waiter {model}", f"waiter {1 - model}")
    waiters[1 - model].leave()


def test_a_newcomer_of_one_model_does_not_wait_for_a_line_of_another(house: MakeHouse) -> None:
    full = house(workers=2, processes=2, models=2)
    holder = full.visit(0, "holder", model=0)
    waiter = full.visit(0, "waiter", model=0)
    for process in (0, 1):
        full.visit(process, f"other {process}", model=1).leave()
    full.settle("holder", "other 0", "other 1")
    holder.leave()
    waiter.leave()


def test_a_retry_within_a_model_never_takes_a_place_of_another(house: MakeHouse) -> None:
    full = house(workers=4, models=2, timeout=0.1)
    visit = full.visit(0, "visit", model=1, avoid={1, 3})
    full.settle("visit: nobody")
    assert visit.backend is None
    assert not any(full.board.loads())
