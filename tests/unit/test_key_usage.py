"""What keys use, counted over forks: limits that hold exactly, and nothing left of a process that died."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from vllm_stack.proxy.caller import Caller
from vllm_stack.proxy.key_usage import ABSENT, COMING, IN_FLIGHT, LIMITED, REQUESTS, KeyUsage, rendered_slot
from vllm_stack.proxy.refusal import Refusal

SLOT = 3


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def in_children(count: int, work: Callable[[int], int]) -> list[int]:
    """Do the work in so many forked processes at a time, and give what each returns, up to 255."""
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            code = 255
            try:
                code = work(number)
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def test_what_every_process_counts_is_seen_by_all() -> None:
    usage = KeyUsage(3)
    for row in (1, 2):
        caller = Caller(usage.row(row), "a", SLOT)
        caller.enter()
        caller.enter()
        caller.leave()
    assert usage.totals(SLOT) == {"requests": 4, "limited": 0, "in_flight": 2}
    assert usage.totals(SLOT + 1) == {"requests": 0, "limited": 0, "in_flight": 0}


def test_a_process_that_died_leaves_its_totals_and_nothing_in_flight() -> None:
    usage = KeyUsage(3)
    caller = Caller(usage.row(1), "a", SLOT, concurrent=1)
    caller.enter()
    with pytest.raises(Refusal):
        caller.enter()
    usage.clear(1)
    assert usage.totals(SLOT) == {"requests": 1, "limited": 1, "in_flight": 0}
    Caller(usage.row(2), "a", SLOT, concurrent=1).enter()


def test_no_more_than_so_many_are_in_flight_at_a_time() -> None:
    usage = KeyUsage(3)
    callers = [Caller(usage.row(row), "a", SLOT, concurrent=2) for row in (1, 2)]
    for caller in callers:
        caller.enter()
    for caller in callers:
        with pytest.raises(Refusal) as caught:
            caller.enter()
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        assert dict(caught.value.headers) == {"retry-after": "1"}
    callers[0].leave()
    callers[1].enter()


@pytest.mark.parametrize("limit", [1, 5])
def test_a_limit_at_a_time_is_exact_over_processes(limit: int) -> None:
    """Each process takes what it can get and keeps it: together they have just the limit."""
    usage = KeyUsage(9)

    def take(number: int) -> int:
        row = usage.row(number + 1)
        return sum(row.allow(SLOT, limit, None) is None for _ in range(200))

    assert sum(in_children(4, take)) == limit
    assert usage.total(SLOT, IN_FLIGHT) == limit


def test_a_limit_by_the_minute_is_exact_over_processes() -> None:
    usage = KeyUsage(9)
    clock = Clock()

    def take(number: int) -> int:
        row = usage.row(number + 1)
        return sum(row.allow(SLOT, None, 150, clock) is None for _ in range(100))

    assert sum(in_children(4, take)) == 150


def test_places_that_are_given_back_and_taken_by_others_are_never_too_many() -> None:
    usage = KeyUsage(9)
    seen = KeyUsage(1).row(0)  # memory of the same kind: the highest number in flight that was seen

    def churn(number: int) -> int:
        row = usage.row(number + 1)
        for _ in range(2000):
            if row.allow(SLOT, 2, None) is None:
                seen.cells[number] = max(seen.cells[number], usage.total(SLOT, IN_FLIGHT))
                row.cells[row.place(SLOT) + IN_FLIGHT] -= 1
        return 0

    assert in_children(3, churn) == [0, 0, 0]
    assert usage.total(SLOT, IN_FLIGHT) == 0
    # A request that is refused is seen for a moment, one for each of the other processes.
    assert 1 <= max(seen.cells[:3]) <= 2 + 2


def test_within_any_minute_there_are_no_more_than_the_limit() -> None:
    row, clock = KeyUsage(1).row(0), Clock()
    came: list[float] = []
    for step in range(2000):
        clock.now = 1000 + step * 0.17
        if row.allow(SLOT, None, 30, clock) is None:
            came.append(clock.now)
    most = max(sum(start <= moment < start + 60 for moment in came) for start in came)
    assert most == 30
    assert len(came) >= 5 * 30


def test_who_waits_as_long_as_told_comes_in() -> None:
    row, clock = KeyUsage(1).row(0), Clock()
    for moment in (1000.0, 1010.5, 1010.9, 1030.0):
        clock.now = moment
        assert row.allow(SLOT, None, 4, clock) is None
    for _ in range(3):
        while (denial := row.allow(SLOT, None, 4, clock)) is None:
            pass
        assert not denial.concurrent
        clock.now += denial.wait - 1
        assert row.allow(SLOT, None, 4, clock) is not None
        clock.now += 1
        assert row.allow(SLOT, None, 4, clock) is None


def test_a_limit_that_was_lowered_holds_at_once_and_tells_how_long() -> None:
    row, clock = KeyUsage(1).row(0), Clock()
    for _ in range(10):
        assert row.allow(SLOT, None, 10, clock) is None
        clock.now += 1
    denial = row.allow(SLOT, None, 3, clock)
    assert denial is not None
    clock.now += denial.wait
    assert row.allow(SLOT, None, 3, clock) is None


def test_what_is_refused_counts_for_no_limit() -> None:
    row, clock = KeyUsage(1).row(0), Clock()
    assert row.allow(SLOT, 1, 2, clock) is None
    for _ in range(5):
        denial = row.allow(SLOT, 1, 2, clock)
        assert denial is not None
        assert denial.concurrent
    row.cells[row.place(SLOT) + IN_FLIGHT] -= 1
    assert row.allow(SLOT, 1, 2, clock) is None
    row.cells[row.place(SLOT) + IN_FLIGHT] -= 1
    denial = row.allow(SLOT, 1, 2, clock)
    assert denial is not None
    assert not denial.concurrent
    assert row.usage.total(SLOT, IN_FLIGHT) == 0


def test_the_minute_says_when_in_the_headers_of_openai() -> None:
    caller = Caller(KeyUsage(1).row(0), "alice", SLOT, per_minute=1)
    caller.enter()
    with pytest.raises(Refusal) as caught:
        caller.enter()
    headers = dict(caught.value.headers)
    assert 1 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == f"{headers['retry-after']}s"
    assert "alice" in str(caught.value)


def test_a_process_stopped_with_the_lock_in_its_hand_stops_nobody() -> None:
    usage = KeyUsage(9)
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with usage.lock.holding(SLOT):
            os.write(told, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"x"
        assert not usage.lock.try_for(SLOT, 0.01)
        row = usage.row(2)
        assert [row.allow(SLOT, 2, None) is None for _ in range(4)] == [True, True, False, False]
        assert row.allow(SLOT + 1, 1, None) is None
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(told)
    assert usage.lock.try_for(SLOT, 0)  # the kernel has taken it from the dead


def test_every_process_is_waited_for_from_the_fork_to_its_end() -> None:
    usage = KeyUsage(4)
    usage.expect(1)
    assert usage.seen() == [COMING]
    usage.row(1).publish(7)
    usage.expect(2)
    assert usage.seen() == [7, COMING]
    usage.clear(2)
    assert usage.seen() == [7]
    assert ABSENT not in usage.seen()


def test_a_door_that_asked_for_keys_once_asks_in_every_process() -> None:
    usage = KeyUsage(2)
    assert not usage.row(0).closed
    usage.row(1).closed = True
    assert usage.row(0).closed


def test_keys_of_render_beyond_the_places_there_are_share_the_last() -> None:
    usage = KeyUsage(2)
    row = usage.row(1)
    Caller(row, "last", rendered_slot(10**6)).enter()
    assert usage.total(rendered_slot(10**7), REQUESTS) == 1
    assert usage.total(rendered_slot(0), LIMITED) == 0
