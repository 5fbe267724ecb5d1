"""Everything at once: whatever clients, workers and proxy processes do to each other, nothing stays."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.integration.proxy.harness import FakeWorker, Stack, Wire, chat, request
from tests.support.polling import until

CLIENTS = 24
SECONDS = 12.0
PROXY_KILLS = 4
RESPONSE_TIMEOUT = 1.0

# What goes wrong between the proxy and a worker.
FAULTS: list[dict[str, Any]] = [
    {"reset_before_head": True},
    {"close_before_head": True},
    {"reset_after_events": 3},
    {"close_after_events": 2},
    {"cut_mid_event": 2},
    {"bad_chunk": True},
    {"garbage_head": True},
    {"cl_and_te": True},
    {"abort": True},
    {"status": 500},
    {"status": 204},
    {"interim": 103},
    {"no_body_framing": True},
    {"extra_bytes_after_body": True},
    {"close_mid_body": 20},
    {"huge_head": 200_000},
    {"hang": True},
    {"hang": 2},
]
ANSWERS = {200, 204, 429, 500, 502, 503, 504}
NO_ANSWER = 0
LEFT = -1


@pytest.fixture
def stack(new_stack: Callable[..., Stack]) -> Stack:
    """Half as many places as clients, so that half of them wait."""
    return new_stack(
        workers=3,
        proxy_processes=2,
        max_inflight_per_worker=4,
        queue_timeout=2.0,
        response_timeout=RESPONSE_TIMEOUT,
        policy="least-loaded",
    ).start()


# ------------------------------------------------------------------ what clients do


def whole(wire: Wire, chance: random.Random) -> int:
    """Ask, and read the answer to its end."""
    wire.send(request(body=chat(stream=chance.random() < 0.5, tokens=5, delay=0.01)))
    return wire.answer().status


def faulty(wire: Wire, chance: random.Random) -> int:
    wire.send(
        request(body=chat(stream=chance.random() < 0.5, tokens=4, delay=0.002, **chance.choice(FAULTS)))
    )
    return wire.answer().status


def models(wire: Wire, chance: random.Random) -> int:
    return wire.send(request("GET", "/v1/models")).answer().status


def leaves(wire: Wire, chance: random.Random) -> int:
    """Go at any moment: in the request, in line, before the head, in the answer."""
    stream = chance.random() < 0.6
    data = request(body=chat(stream=stream, tokens=20, delay=0.02, first_delay=chance.choice([0, 0.1])))
    wire.send(data[: chance.choice([len(data), len(data), len(data), 40, len(data) - 1])])
    time.sleep(chance.random() * chance.choice([0.01, 0.4]))  # the moment is the subject
    chance.choice([Wire.reset, Wire.finish, lambda wire: wire.sock.close()])(wire)
    return LEFT


def slow(wire: Wire, chance: random.Random) -> int:
    """Read more slowly than the worker writes; some have enough of it before the end."""
    wire.send(request(body=chat(stream=True, tokens=60, size=20_000)))
    status = wire.head().status
    if status != 200:
        return status
    for number, _ in enumerate(wire.chunks()):
        time.sleep(0.01)  # the pace is the subject
        if number > chance.randrange(200):
            return LEFT
    return status


def deadly(wire: Wire, chance: random.Random) -> int:
    """Take a worker down, and perhaps another one."""
    deadly_at = chance.choice([True, 3])
    wire.send(request(body=chat(stream=True, tokens=8, kill_api_server=deadly_at)))
    return wire.answer().status


ACTS = [whole] * 6 + [faulty] * 8 + [leaves] * 8 + [slow] * 2 + [models]


def be_a_client(stack: Stack, number: int, end: float) -> Counter[int]:
    """Do one thing after the other; how often each status came."""
    chance = random.Random(number)
    seen: Counter[int] = Counter()
    while time.monotonic() < end:
        act = deadly if number == 0 and chance.random() < 0.1 else chance.choice(ACTS)
        receive_buffer = 8192 if act is slow else None
        with stack.wire(timeout=20, receive_buffer=receive_buffer) as wire:
            try:
                seen[act(wire, chance)] += 1
            except AssertionError:  # the connection ended without an answer
                seen[NO_ANSWER] += 1
    return seen


# ------------------------------------------------------------------ what happens to servers


def raise_the_dead(workers: list[FakeWorker]) -> None:
    for worker in workers:
        assert worker.process
        if worker.process.poll() is not None:
            worker.bury()
            worker.start()


def make_trouble(stack: Stack, end: float) -> None:
    """Kill a proxy process or a worker at every turn, until it is over."""
    chance = random.Random(0)
    begun, turns = time.monotonic(), 2 * PROXY_KILLS + 1
    for turn in range(1, turns):
        at = begun + (end - begun) * turn / turns
        while time.monotonic() < at:
            raise_the_dead(stack.workers)
            time.sleep(0.02)
        if turn % 2:
            os.kill(until(lambda: chance.choice(stack.processes()), 5, "there is one"), signal.SIGKILL)
        else:
            chance.choice(stack.workers).kill()


# ------------------------------------------------------------------ what may be left


def descriptors(stack: Stack) -> list[int]:
    return sorted(psutil.Process(pid).num_fds() for pid in stack.processes())


def both_know_all_workers(stack: Stack) -> bool:
    """Each process has its line to each worker, and nothing else is open there."""
    return all(worker.state()["connections_open"] == 2 for worker in stack.workers)


def check_nothing_is_left(stack: Stack, base: list[int]) -> None:
    until(lambda: stack.admin()["waiting"] == 0, 10, "nobody waits")
    until(lambda: stack.in_flight() == [0, 0, 0], 10, "the proxy has nothing in flight")
    idle = lambda: not any(worker.state()["in_flight"] for worker in stack.workers)  # noqa: E731
    until(idle, 10, "no worker works for nobody")
    assert stack.malformed() == []
    # Idle connections to the workers are no leak: they end with the workers.
    for worker in stack.workers:
        worker.kill()
        worker.start()
    stack.wait_ready()
    until(lambda: both_know_all_workers(stack), 10, "the workers have no other connection")
    until(lambda: descriptors(stack) == base, 10, f"the proxy has {base} descriptors again")


def test_nothing_is_left_of_a_storm_of_everything(stack: Stack) -> None:
    until(lambda: both_know_all_workers(stack), 10, "nobody else is connected")
    base = descriptors(stack)
    end = time.monotonic() + SECONDS
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(be_a_client, stack, number, end) for number in range(CLIENTS)]
        make_trouble(stack, end)
        seen = sum((client.result() for client in clients), Counter[int]())
    raise_the_dead(stack.workers)
    stack.wait_ready()
    assert set(seen) <= ANSWERS | {NO_ANSWER, LEFT}, seen
    # A process that is killed takes along what it had, and that is all that ends without a word.
    assert seen[NO_ANSWER] <= PROXY_KILLS * CLIENTS, seen
    assert seen[200] > 50, seen
    totals = stack.totals()
    assert all(totals[name] for name in ("waited", "client_gone", "retries_broken", "failures")), totals
    check_nothing_is_left(stack, base)
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: stack.ask(request(body=chat(tokens=1))), range(40))
        assert {answer.status for answer in answers} == {200}
