"""Turns over forks: who waited longest goes first, and nobody who died or stopped holds up the rest."""

from __future__ import annotations

import mmap
import os
import select
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support.polling import until
from vllm_stack.proxy import process_lock
from vllm_stack.proxy import turns as turns_module
from vllm_stack.proxy.turns import Turn, Turns


def rung(turn: Turn) -> bool:
    """Tell whether the bell was rung since we last asked."""
    heard = bool(select.select([turn.bell], [], [], 0)[0])
    turn.hush()
    return heard


Three = tuple[Turns, Turn, Turn, Turn]


@pytest.fixture
def turns() -> Iterator[Turns]:
    """Room for three processes, on rows 1 to 3."""
    turns = Turns(4)
    yield turns
    for descriptor in turns.bells:
        os.close(descriptor)
    turns.lock.close()


@pytest.fixture
def three(turns: Turns) -> Three:
    return turns, Turn(turns, 1), Turn(turns, 2), Turn(turns, 3)


# ------------------------------------------------------------------ whose turn it is


def test_it_is_the_turn_of_who_waited_longest_in_all_processes(three: Three) -> None:
    _, a, b, c = three
    now = time.monotonic_ns()
    assert a.is_ours(now)
    b.publish(now - 20, 1, choosy=False)
    c.publish(now - 10, 1, choosy=False)
    assert not a.is_ours(now)
    assert not c.is_ours(now - 10)
    assert b.is_ours(now - 20)
    b.publish(0, 0, choosy=False)
    assert c.is_ours(now - 10)


def test_the_bell_rings_where_the_longest_wait_is_and_nowhere_else(three: Three) -> None:
    _, a, b, c = three
    now = time.monotonic_ns()
    a.pass_on()
    assert not rung(b)
    b.publish(now - 20, 1, choosy=False)
    c.publish(now - 10, 1, choosy=False)
    a.pass_on()
    assert (rung(a), rung(b), rung(c)) == (False, True, False)
    b.pass_on()
    assert (rung(a), rung(b), rung(c)) == (False, False, True)


def test_those_who_want_a_certain_place_hear_of_every_one_and_hold_up_nobody(three: Three) -> None:
    _, a, b, c = three
    b.publish(0, 1, choosy=True)
    c.publish(time.monotonic_ns(), 2, choosy=True)
    a.pass_on()
    assert (rung(b), rung(c)) == (False, True)
    a.tell()
    assert (rung(a), rung(b), rung(c)) == (False, True, True)
    c.publish(0, 0, choosy=False)
    assert a.is_ours(time.monotonic_ns())


def test_all_who_wait_are_counted_and_the_ended_are_forgotten(three: Three) -> None:
    turns, a, b, _ = three
    b.publish(5, 3, choosy=True)
    a.publish(9, 2, choosy=False)
    assert turns.waiting() == 5
    turns.clear(2)
    assert turns.waiting() == 2
    assert a.is_ours(time.monotonic_ns())
    a.tell()
    assert not rung(b)


def test_nobody_waits_long_for_a_process_that_shows_no_life(
    three: Three, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns_module, "_ASLEEP", 50_000_000)
    _, a, b, _ = three
    since = time.monotonic_ns()
    b.publish(since, 1, choosy=False)
    assert not a.is_ours(time.monotonic_ns())
    until(lambda: a.is_ours(time.monotonic_ns()), 2, "b is taken for asleep")
    b.show_life()
    assert not a.is_ours(time.monotonic_ns())


# ------------------------------------------------------------------ the lock


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def holder(turns: Turns, row: int) -> int:
    """A process that has the lock, for ever."""
    ours, theirs = os.pipe()

    def hold() -> None:
        with Turn(turns, row).alone():
            os.write(theirs, b"!")
            while True:
                signal.pause()

    pid = forked(hold)
    assert os.read(ours, 1) == b"!"
    os.close(ours)
    os.close(theirs)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def has_lock(turn: Turn) -> bool:
    with turn.alone() as locked:
        return locked


def test_no_two_processes_have_the_lock_at_a_time(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a loaded machine a holder may not run for longer than the others' patience.
    monkeypatch.setattr(turns.lock, "_patience", 60)
    monkeypatch.setattr(process_lock, "_PATIENCE", 60)
    memory = mmap.mmap(-1, 8)
    cell = memoryview(memory).cast("q")

    def count(row: int) -> None:
        turn = Turn(turns, row)
        for _ in range(2000):
            with turn.alone() as locked:
                assert locked
                seen = cell[0]
                if seen % 50 == 0:
                    os.sched_yield()
                cell[0] = seen + 1

    pids = [forked(lambda row=row: count(row)) for row in (1, 2, 3)]  # type: ignore[misc]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0, 0]
    assert cell[0] == 6000


def test_the_lock_of_a_process_that_dies_is_free(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns.lock, "_patience", 0.05)
    pid = holder(turns, 1)
    turn = Turn(turns, 2)
    assert not has_lock(turn)
    end(pid)
    assert has_lock(turn)


def test_a_stopped_holder_holds_up_the_others_once_and_shortly(turns: Turns) -> None:
    pid = holder(turns, 1)
    try:
        os.kill(pid, signal.SIGSTOP)
        until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, 5, "it is stopped")
        turn = Turn(turns, 2)
        start = time.monotonic()
        for _ in range(50):
            assert not has_lock(turn)
        assert 0.09 < time.monotonic() - start < 1
    finally:
        end(pid)
    assert has_lock(turn)
    again = holder(turns, 1)
    try:
        start = time.monotonic()
        assert not has_lock(turn)
        assert time.monotonic() - start > 0.09  # patient again
    finally:
        end(again)


@pytest.fixture
def lanes() -> Iterator[Turns]:
    """Two lanes for two processes."""
    turns = Turns(3, lanes=2)
    yield turns
    for descriptor in turns.bells:
        os.close(descriptor)
    turns.lock.close()


def test_lanes_have_turns_of_their_own(lanes: Turns) -> None:
    a, b = Turn(lanes, 1), Turn(lanes, 2)
    now = time.monotonic_ns()
    b.publish(now - 20, 3, choosy=False, lane=1)
    assert a.is_ours(now, 0)
    assert not a.is_ours(now, 1)
    a.pass_on(0)
    a.tell(0)
    assert not rung(b)
    a.tell(1)
    assert rung(b)
    a.publish(now - 10, 1, choosy=False, lane=0)
    assert lanes.waiting() == 4
    assert b.is_ours(now, 1)
    lanes.clear(2)
    assert a.is_ours(now, 1)
    assert lanes.waiting() == 1
