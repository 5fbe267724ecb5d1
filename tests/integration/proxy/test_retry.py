"""What is tried again: all that was never sent; once, what a worker dropped; nothing else."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.proxy.harness import (
    Answer,
    FakeWorker,
    Play,
    ScriptedWorker,
    Stack,
    Wire,
    chat,
    close_hard,
    request,
)
from tests.support.polling import until
from tests.support.processes import is_alive

MakeStack = Callable[..., Stack]
Scripted = tuple[Stack, list[ScriptedWorker]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Four workers and two proxy processes, put together again after each test."""
    with Stack(
        tmp_path_factory.mktemp("retry"), workers=4, proxy_processes=2, policy="least-loaded"
    ) as stack:
        yield stack.start()


@pytest.fixture
def four(module_stack: Stack) -> Iterator[Stack]:
    yield module_stack
    for worker in module_stack.workers:
        assert worker.process
        if worker.process.poll() is not None:
            worker.bury()
            worker.start()
    module_stack.wait_ready()


def dead(stack: Stack) -> list[FakeWorker]:
    return [worker for worker in stack.workers if worker.process and worker.process.poll() is not None]


def ask_many(stack: Stack, data: bytes, times: int, at_once: int = 8) -> list[Answer]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda _: stack.ask(data), range(times)))


def statuses(answers: list[Answer]) -> set[int]:
    return {answer.status for answer in answers}


# ------------------------------------------------------------------ workers that are gone


def test_a_worker_that_is_gone_is_passed_over_unseen(four: Stack) -> None:
    four.workers[0].kill()
    four.workers[1].stop()
    put = request("PUT", "/v1/x", {})
    assert statuses(ask_many(four, request(body=chat(tokens=1)), 40)) == {200}
    assert statuses(ask_many(four, put, 20)) == {404}


def test_a_worker_that_comes_back_is_used_again_within_two_seconds(four: Stack) -> None:
    worker = four.workers[0]
    worker.kill()
    assert statuses(ask_many(four, request(body=chat(tokens=1)), 20)) == {200}
    worker.start()
    until(worker.listening, 10, "the worker listens")
    since = time.monotonic()
    until(lambda: four.ask(request(body=chat(tokens=1))) and worker.count(), 5, "the worker is used again")
    assert time.monotonic() - since < 2


def test_nobody_ready_is_503_and_come_back(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1)
    stack.start_proxy()
    until(lambda: stack.ask(request("GET", "/livez")).status == 200, 10, "the door is open")
    for data in (request(body=chat()), request(body=chat(stream=True)), request("GET", "/v1/models")):
        answer = stack.ask(data)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
        assert int(answer.header("retry-after") or 0) > 0
    health = stack.ask(request("GET", "/health"))
    assert (health.status, health.header("retry-after")) == (503, "5")
    with stack.wire() as wire:
        assert wire.send(request(body=chat())).answer().status == 503
        assert wire.goes_on()
    stack.workers[0].start()
    stack.wait_ready()
    assert stack.ask(request(body=chat())).status == 200


# ------------------------------------------------------------------ workers that drop a request


@pytest.mark.parametrize("fault", [{"reset_before_head": True}, {"close_before_head": True}])
@pytest.mark.parametrize("stream", [True, False])
def test_a_dropped_request_is_sent_to_two_workers_and_no_third(
    four: Stack, fault: dict[str, Any], stream: bool
) -> None:
    before = four.count()
    answer = four.ask(request(body=chat(stream=stream, **fault)))
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert answer.header("x-should-retry") == "false"
    assert four.count() == before + 2
    assert sum(four.in_flight()) == 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models"),
        ("PUT", "/v1/x"),
        ("PUT", "/v1/chat/completions"),
        ("DELETE", "/v1/x"),
        ("PATCH", "/v1/x"),
        ("POST", "/v1/x"),
        ("POST", "/v1/chat/completions/"),
    ],
)
def test_a_dropped_request_on_another_route_is_not_sent_again(
    scripted: Scripted, method: str, path: str
) -> None:
    """Nobody knows what it has done already."""
    stack, workers = scripted
    for worker in workers:
        worker.play = drop
    answer = stack.ask(request(method, path, {"a": 1}))
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert sum(len(worker.requests) for worker in workers) == 1


def test_a_poison_request_takes_down_two_workers_of_four(four: Stack) -> None:
    answer = four.ask(request(body=chat(kill_api_server=True)))
    assert (answer.status, answer.header("x-should-retry")) == (502, "false")
    until(lambda: len(dead(four)) == 2, 5, "two workers are down")
    assert statuses(ask_many(four, request(body=chat(tokens=1)), 20)) == {200}
    assert len(dead(four)) == 2


def test_a_single_worker_that_drops_a_request_lets_the_client_come_back(new_stack: MakeStack) -> None:
    """The request was sent once, to one worker: nothing says that it is poison."""
    stack = new_stack(workers=1)
    worker = ScriptedWorker(stack.workers[0].port)
    try:
        stack.start(workers=False)
        before = stack.retries()
        answer = stack.ask(request(body=chat()))
        assert len(worker.requests) == 1
        assert answer.status in (502, 503)
        assert answer.header("x-should-retry") != "false"
        assert stack.retries() == before
    finally:
        worker.close()


@pytest.mark.parametrize("stream", [True, False])
def test_an_abort_before_anything_went_out_is_retried(scripted: Scripted, stream: bool) -> None:
    stack, workers = scripted
    whole = b'{"choices":[{"finish_reason":"abort"}]}'
    event = b"data: " + whole + b"\n\n"
    aborted = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(whole), whole)
    if stream:
        aborted = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        aborted += b"%x\r\n%b\r\n" % (len(event), event)

    def abort(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(aborted)
        return False

    play_once(workers, abort, then=OK)
    assert stack.ask(request(body=chat(stream=stream))).body == b"ok"
    assert sum(len(worker.requests) for worker in workers) == 2


def play_once(workers: list[ScriptedWorker], first: Play, then: bytes) -> None:
    """The first request goes to `first`, whichever worker gets it; all others are answered."""
    lock = threading.Lock()
    played: list[bytes] = []

    def play(sock: socket.socket, data: bytes) -> bool:
        with lock:
            mine = not played
            played.append(data)
        if mine:
            return first(sock, data)
        sock.sendall(then)
        return True

    for worker in workers:
        worker.play = play


def drop(sock: socket.socket, data: bytes) -> bool:
    close_hard(sock)
    return False


def half_a_head(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-le")
    return False


def half_a_body(sock: socket.socket, data: bytes) -> bool:
    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nhalf")
    return False


def its_engine_died(sock: socket.socket, data: bytes) -> bool:
    """vLLM tells so whomever it had not answered yet, and ends a few seconds later."""
    words = b"EngineCore encountered an issue. See stack trace (above) for the root cause."
    body = b'{"error":{"message":"%s","type":"InternalServerError","param":null,"code":500}}' % words
    head = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: %d\r\n\r\n" % len(body)
    sock.sendall(head + body)
    return True


@pytest.mark.parametrize("first", [drop, half_a_head, half_a_body, its_engine_died])
def test_what_breaks_before_anything_went_out_is_retried_unseen(scripted: Scripted, first: Play) -> None:
    stack, workers = scripted
    play_once(workers, first, then=OK)
    answer = stack.ask(request(body=chat()))
    assert (answer.status, answer.body) == (200, b"ok")
    assert sum(len(worker.requests) for worker in workers) == 2


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_retry_is_the_same_request_to_the_last_byte(scripted: Scripted, method: str) -> None:
    stack, workers = scripted
    play_once(workers, drop, then=OK)
    body = os.urandom(300_000)
    status = stack.ask(request(method, "/v1/completions", body)).status
    seen = [data for worker in workers for data in worker.requests]
    assert all(data.endswith(body) for data in seen)
    if method == "POST":
        assert (status, len(seen), len(set(seen))) == (200, 2, 1)
    else:
        assert (status, len(seen)) == (502, 1)


# ------------------------------------------------------------------ connections kept too long


def warm(stack: Stack, workers: list[ScriptedWorker]) -> None:
    """Leave an idle connection to every worker with the proxy."""

    def play(sock: socket.socket, data: bytes) -> bool:
        barrier.wait(5)
        sock.sendall(OK)
        return True

    barrier = threading.Barrier(len(workers))
    for worker in workers:
        worker.play = play
    assert statuses(ask_many(stack, request(body=chat()), len(workers))) == {200}
    for worker in workers:
        worker.requests.clear()


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/chat/completions"), ("PUT", "/v1/x"), ("GET", "/v1/models")]
)
def test_a_kept_connection_that_dies_under_a_request_is_not_seen(
    scripted: Scripted, method: str, path: str
) -> None:
    """The race: the worker hangs up while our request is on its way."""
    stack, workers = scripted
    warm(stack, workers)
    play_once(workers, drop, then=OK)
    answer = stack.ask(request(method, path, {} if method != "GET" else None))
    assert (answer.status, answer.body) == (200, b"ok")


def test_a_kept_connection_that_dies_under_a_request_is_not_seen_with_one_worker(
    new_stack: MakeStack,
) -> None:
    stack = new_stack(workers=1)
    worker = ScriptedWorker(stack.workers[0].port)
    try:
        stack.start(workers=False)
        warm(stack, [worker])
        play_once([worker], drop, then=OK)
        answer = stack.ask(request(body=chat()))
        assert (answer.status, answer.body) == (200, b"ok")
    finally:
        worker.close()


def test_a_restart_between_two_requests_is_not_seen(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1).start()
    data = request(body=chat(tokens=1))
    with stack.wire() as wire:
        assert wire.send(data).answer().status == 200
        stack.workers[0].stop()
        stack.workers[0].start()
        until(stack.workers[0].listening, 10, "the worker listens")
        stack.wait_ready()
        assert wire.send(data).answer().status == 200


def test_an_idle_connection_is_used_again(four: Stack) -> None:
    opened = sum(worker.state()["connections_opened"] for worker in four.workers)
    with four.wire() as wire:
        for _ in range(40):
            assert wire.send(request(body=chat(tokens=1))).answer().status == 200
    asked = sum(worker.state()["connections_opened"] for worker in four.workers) - opened
    # One a worker at most; the rest are the health checks of two processes and our own questions.
    assert asked < 25


# ------------------------------------------------------------------ silence


def test_a_worker_that_says_nothing_is_504_after_the_response_timeout(new_stack: MakeStack) -> None:
    stack = new_stack(workers=2, response_timeout=0.5).start()
    start = time.monotonic()
    answer = stack.ask(request(body=chat(hang=True)))
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    assert 0.4 < time.monotonic() - start < 2
    assert stack.count() == 1
    stalled = stack.ask(request(body=chat(stream=True, hang=3)))
    assert not stalled.whole
    assert len(stalled.events) == 4
    assert b'"error"' in stalled.events[-1]
    until(lambda: stack.aborted() == 2, 2, "the workers were let off")
    assert stack.in_flight() == [0, 0]


# ------------------------------------------------------------------ spreading


def open_streams(stack: Stack, count: int) -> list[Wire]:
    wires = []
    for number in range(1, count + 1):
        wire = stack.wire()
        wires.append(wire.send(request(body=chat(stream=True, tokens=1, hang=2))))
        assert wire.head().status == 200
        until(lambda n=number: sum(stack.in_flight()) == n, 5, f"{number} are in flight")  # type: ignore[misc]
    return wires


def close_all(wires: list[Wire]) -> None:
    for wire in wires:
        wire.sock.close()


def test_least_loaded_fills_all_workers_evenly_over_two_processes(four: Stack) -> None:
    wires = open_streams(four, 16)
    try:
        assert four.in_flight() == [4, 4, 4, 4]
        assert [worker.state()["in_flight"] for worker in four.workers] == [4, 4, 4, 4]
    finally:
        close_all(wires)
    until(lambda: four.in_flight() == [0, 0, 0, 0], 5, "nothing is in flight")


def test_least_loaded_gives_the_next_request_to_the_idle_worker(four: Stack) -> None:
    wires = open_streams(four, 3)
    try:
        idle = four.in_flight().index(0)
        for _ in range(5):
            port = four.ask(request(body=chat(tokens=1))).header("x-fake-worker")
            assert port == str(four.workers[idle].port)
            until(lambda: sum(four.in_flight()) == 3, 2, "it is in flight no more")
    finally:
        close_all(wires)


def test_round_robin_takes_turns(new_stack: MakeStack) -> None:
    stack = new_stack(workers=3, policy="round-robin").start()
    data = request(body=chat(tokens=1))
    ports = [stack.ask(data).header("x-fake-worker") for _ in range(9)]
    assert len(set(ports[:3])) == 3
    assert ports == ports[:3] * 3


# ------------------------------------------------------------------ processes that are killed


def test_a_killed_proxy_process_takes_its_count_along_and_the_door_serves_on(four: Stack) -> None:
    wires = open_streams(four, 6)
    totals = four.totals()
    try:
        for pid in four.processes():
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not is_alive(pid), 5, "it is dead")  # type: ignore[misc]
        until(lambda: len(four.processes()) == 2, 5, "there are two processes again")
        until(lambda: four.ask(request("GET", "/livez")).status == 200, 10, "the door is open")
        until(lambda: four.in_flight() == [0, 0, 0, 0], 5, "their streams are counted no more")
        assert four.totals()["requests"] >= totals["requests"]
        until(lambda: not any(w.state()["in_flight"] for w in four.workers), 5, "the workers were let off")
    finally:
        close_all(wires)
    # Each of the new processes has to see for itself who is ready.
    until(lambda: statuses(ask_many(four, request(body=chat(tokens=1)), 20)) == {200}, 10, "both serve")
