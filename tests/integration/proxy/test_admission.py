"""The line before full or starting workers: first come, first served, and never one too many."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import openai
import psutil
import pytest

from tests.integration.proxy.harness import HOST, KEY, Answer, Stack, Wire, chat, request
from tests.support.polling import throughout, until
from tests.support.processes import group_members

MakeStack = Callable[..., Stack]
LONG = 30.0  # seconds to wait in line, where a test does not want to see the end of it
HOLD = chat(stream=True, tokens=1, hang=2)
SHORT = chat(tokens=1)


@pytest.fixture(scope="module")
def module_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker with one place, and a line that is longer than any test."""
    with Stack(
        tmp_path_factory.mktemp("line"), workers=1, max_inflight_per_worker=1, queue_timeout=LONG
    ) as stack:
        yield stack.start()


@pytest.fixture
def one(module_stack: Stack) -> Iterator[Stack]:
    yield module_stack
    module_stack.wait_quiet()
    wait_for_line(module_stack, 0)
    module_stack.check_log()


@pytest.fixture
def wires() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def wait_for_line(stack: Stack, length: int) -> None:
    until(lambda: stack.admin()["waiting"] == length, 10, f"{length} wait")


def hold(stack: Stack, wires: ExitStack, count: int = 1) -> list[Wire]:
    """Take places, until their connections end."""
    held = [wires.enter_context(stack.wire(timeout=20)).send(request(body=HOLD)) for _ in range(count)]
    assert {wire.head().status for wire in held} == {200}
    return held


def numbered(number: int, body: dict[str, Any] = SHORT) -> bytes:
    return request(body=body, x_number=str(number))


def queue_up(stack: Stack, wire: Wire, number: int = 0, body: dict[str, Any] = SHORT) -> Wire:
    """Send a request, and see it in line before anything else is done."""
    length = stack.admin()["waiting"]
    wire.send(numbered(number, body))
    wait_for_line(stack, length + 1)
    return wire


def queue(stack: Stack, wires: ExitStack, count: int) -> list[Wire]:
    return [queue_up(stack, wires.enter_context(stack.wire(timeout=20)), number) for number in range(count)]


def numbers(stack: Stack, worker: int = 0) -> list[int]:
    """Say in what order the numbered requests came to a worker."""
    heads = [dict(seen["headers"]) for seen in stack.workers[worker].requests()]
    return [int(head["x-number"]) for head in heads if "x-number" in head]


def most_in_flight(stack: Stack) -> list[int]:
    return [worker.state()["most_in_flight"] for worker in stack.workers]


def check_queue_full(answer: Answer) -> None:
    assert (answer.status, answer.error["type"], answer.error["code"]) == (
        429,
        "rate_limit_error",
        "queue_full",
    )
    assert int(answer.header("retry-after") or 0) > 0


def check_no_ready_worker(answer: Answer) -> None:
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    assert int(answer.header("retry-after") or 0) > 0


# ------------------------------------------------------------------ processes


def home(stack: Stack, wire: Wire) -> int | None:
    """Say which process of the proxy took a connection, None if none has yet."""
    port = wire.sock.getsockname()[1]
    for pid in stack.processes():
        if any(c.raddr and c.raddr[1] == port for c in psutil.Process(pid).net_connections("tcp")):
            return pid
    return None


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wires_at_both(stack: Stack, wires: ExitStack, each: int) -> dict[int, list[Wire]]:
    """Open connections until both processes have `each` of them: where one lands is chance."""
    found: dict[int, list[Wire]] = {pid: [] for pid in stack.processes()}
    assert len(found) == 2
    for _ in range(500):
        wire = wires.enter_context(stack.wire(timeout=20))
        pid = until(lambda wire=wire: home(stack, wire), 5, "it was taken")  # type: ignore[misc]
        found[pid].append(wire)
        if all(len(at) >= each for at in found.values()):
            return found
    raise AssertionError("all connections go to one process")


# ------------------------------------------------------------------ the limit


def storm(stack: Stack, number: int) -> int:
    streams = number % 3 == 0
    body = chat(stream=streams, tokens=2, delay=0.002 * (number % 4))
    with stack.wire(timeout=40) as wire:
        return wire.send(request(body=body)).answer().status


@pytest.mark.parametrize("processes", [1, 3])
def test_no_worker_has_more_than_its_limit_in_a_storm(new_stack: MakeStack, processes: int) -> None:
    stack = new_stack(
        workers=2, max_inflight_per_worker=3, queue_timeout=LONG, proxy_processes=processes
    ).start()
    with ThreadPoolExecutor(32) as pool:
        assert set(pool.map(lambda number: storm(stack, number), range(400))) == {200}
    assert most_in_flight(stack) == [3, 3]
    stack.wait_quiet()
    assert stack.admin()["waiting"] == 0
    assert stack.totals()["waited"] > 0


def test_a_stream_holds_its_place_until_its_end(one: Stack, wires: ExitStack) -> None:
    stream = wires.enter_context(one.wire())
    stream.send(request(body=chat(stream=True, tokens=20, delay=0.05)))
    assert stream.head().status == 200
    waiting = queue_up(one, wires.enter_context(one.wire()))
    chunks = list(stream.chunks())
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert waiting.answer().status == 200
    assert one.workers[0].state()["most_in_flight"] == 1


def test_what_runs_no_model_passes_a_full_house(one: Stack, wires: ExitStack) -> None:
    hold(one, wires)
    queue(one, wires, 2)
    waited = one.totals()["waited"]
    assert one.ask(request("GET", "/v1/models")).status == 200
    assert one.ask(request("PUT", "/v1/x", {})).status == 404
    assert one.ask(request("GET", "/health")).status == 200
    assert one.totals()["waited"] == waited
    assert one.admin()["waiting"] == 2


# ------------------------------------------------------------------ order


def test_first_come_first_served(one: Stack, wires: ExitStack) -> None:
    before = len(numbers(one))
    (holder,) = hold(one, wires)
    line = queue(one, wires, 30)
    holder.reset()
    assert {wire.answer().status for wire in line} == {200}
    assert numbers(one)[before:] == list(range(30))


def test_first_come_first_served_over_two_processes(new_stack: MakeStack, wires: ExitStack) -> None:
    stack = new_stack(workers=1, max_inflight_per_worker=1, queue_timeout=LONG, proxy_processes=2).start()
    ours = wires_at_both(stack, wires, 12)
    (holder,) = hold(stack, wires)
    here, there = ours.values()
    # Three here, three there, and so on: the turn has to change over and to stay.
    line = [wire for at in range(0, 12, 3) for wire in here[at : at + 3] + there[at : at + 3]]
    for number, wire in enumerate(line):
        queue_up(stack, wire, number)
    holder.reset()
    assert {wire.answer().status for wire in line} == {200}
    assert numbers(stack) == list(range(24))


def test_who_comes_later_to_the_process_that_frees_the_place_does_not_overtake_the_line_of_another(
    new_stack: MakeStack, wires: ExitStack
) -> None:
    stack = new_stack(workers=1, max_inflight_per_worker=1, queue_timeout=LONG, proxy_processes=2).start()
    here, there = wires_at_both(stack, wires, 8).values()
    holder = there.pop()
    assert holder.send(request(body=HOLD)).head().status == 200
    for number, wire in enumerate(here):
        queue_up(stack, wire, number)
    for wire in there:
        wire.send(numbered(1000))
    wait_for_line(stack, len(here + there))
    holder.reset()
    assert {wire.answer().status for wire in here + there} == {200}
    assert numbers(stack) == [*range(len(here)), *[1000] * len(there)]


# ------------------------------------------------------------------ not in time


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(
        tmp_path_factory.mktemp("impatient"), workers=1, max_inflight_per_worker=1, queue_timeout=0.4
    ) as stack:
        yield stack.start()


def test_who_is_not_served_in_time_gets_429_and_the_connection_goes_on(
    impatient: Stack, wires: ExitStack
) -> None:
    (holder,) = hold(impatient, wires)
    with impatient.wire() as wire:
        start = time.monotonic()
        check_queue_full(wire.send(request(body=SHORT)).answer())
        assert 0.39 < time.monotonic() - start < 5
        assert impatient.admin()["waiting"] == 0
        holder.reset()
        until(lambda: impatient.in_flight() == [0], 5, "the place is free")
        assert wire.send(request(body=SHORT)).answer().status == 200
    impatient.wait_quiet()


def test_the_openai_client_sees_a_rate_limit(impatient: Stack, wires: ExitStack) -> None:
    (holder,) = hold(impatient, wires)
    with openai.OpenAI(
        base_url=f"http://{HOST}:{impatient.port}/v1", api_key=KEY, max_retries=0, timeout=10
    ) as client:
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert (raised.value.status_code, raised.value.code) == (429, "queue_full")
        assert raised.value.type == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
        holder.reset()
        until(lambda: impatient.in_flight() == [0], 5, "the place is free")
        made = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert made.choices[0].finish_reason == "stop"
    impatient.wait_quiet()


def test_a_queue_timeout_of_nothing_refuses_at_once(new_stack: MakeStack, wires: ExitStack) -> None:
    stack = new_stack(workers=1, max_inflight_per_worker=1, queue_timeout=0.0).start()
    hold(stack, wires)
    start = time.monotonic()
    for _ in range(10):
        check_queue_full(stack.ask(request(body=SHORT)))
    assert time.monotonic() - start < 2
    assert stack.totals()["waited"] == 0


# ------------------------------------------------------------------ workers that are not ready


@pytest.mark.parametrize("limit", [None, 1])
def test_who_comes_while_the_only_worker_starts_is_answered_when_it_is_ready(
    new_stack: MakeStack, wires: ExitStack, limit: int | None
) -> None:
    stack = new_stack(workers=1, queue_timeout=LONG, max_inflight_per_worker=limit)
    stack.start_proxy()
    until(lambda: stack.ask(request("GET", "/livez")).status == 200, 10, "the door is open")
    line = queue(stack, wires, 5)
    models = wires.enter_context(stack.wire(timeout=20)).send(request("GET", "/v1/models"))
    wait_for_line(stack, 6)
    stack.workers[0].start()
    assert {wire.answer().status for wire in [*line, models]} == {200}
    assert sorted(numbers(stack)) == list(range(5))
    assert limit is None or numbers(stack) == list(range(5))


def test_a_restart_of_the_only_worker_is_not_seen(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1, queue_timeout=LONG).start()
    stack.workers[0].kill()
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(stack.ask, request(body=SHORT)) for _ in range(8)]
        wait_for_line(stack, 8)
        stack.workers[0].start()
        assert {answer.result(20).status for answer in answers} == {200}


def test_nobody_ready_in_time_is_503(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1, queue_timeout=0.4)
    stack.start_proxy()
    until(lambda: stack.ask(request("GET", "/livez")).status == 200, 10, "the door is open")
    with stack.wire() as wire:
        start = time.monotonic()
        check_no_ready_worker(wire.send(request(body=SHORT)).answer())
        assert time.monotonic() - start > 0.39
        assert wire.goes_on()
    with openai.OpenAI(
        base_url=f"http://{HOST}:{stack.port}/v1", api_key=KEY, max_retries=0, timeout=10
    ) as client:
        with pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert (raised.value.status_code, raised.value.code) == (503, "no_ready_worker")


def test_a_worker_that_was_told_to_stop_is_not_waited_for(new_stack: MakeStack, wires: ExitStack) -> None:
    stack = new_stack(workers=1, max_inflight_per_worker=1, queue_timeout=LONG).start()
    hold(stack, wires)
    early = queue(stack, wires, 2)
    (stack.out / "run/state/worker-0.stopping").touch()
    until(lambda: not stack.admin()["workers"][0]["ready"], 5, "the proxy has seen the notice")
    check_no_ready_worker(stack.ask(request(body=SHORT)))
    for wire in early:
        check_no_ready_worker(wire.answer())
    stack.workers[0].kill()
    until(lambda: stack.admin()["workers"][0]["state"] == "stopped", 5, "it is known to have stopped")
    check_no_ready_worker(stack.ask(request(body=SHORT)))


def scripted_chat(number: int) -> bytes:
    """A request whose answer is the worker's own choice."""
    return numbered(number, {"model": "m", "messages": [{"role": "user", "content": "x"}]})


@pytest.mark.parametrize("processes", [1, 2])
def test_when_a_worker_dies_the_others_serve_its_request_and_the_line(
    new_stack: MakeStack, wires: ExitStack, processes: int
) -> None:
    stack = new_stack(
        workers=2,
        max_inflight_per_worker=1,
        queue_timeout=LONG,
        policy="round-robin",
        proxy_processes=processes,
    ).start()
    stack.script({"*": {"hang": True}})
    inside = [
        wires.enter_context(stack.wire(timeout=20)).send(scripted_chat(number)) for number in (100, 101)
    ]
    until(lambda: stack.count() == 2, 10, "both workers are full")
    victim = numbers(stack, 0)[0] - 100
    line = queue(stack, wires, 4)
    stack.script({})
    stack.workers[0].kill()
    wait_for_line(stack, 5)
    inside[1 - victim].reset()
    assert {wire.answer().status for wire in [*line, inside[victim]]} == {200}
    came = numbers(stack, 1)[1:]
    assert sorted(came) == [0, 1, 2, 3, 100 + victim]
    # With several processes the line of the one that frees the place may be a step quicker.
    assert processes > 1 or came == [100 + victim, 0, 1, 2, 3]
    assert stack.workers[1].state()["most_in_flight"] == 1


# ------------------------------------------------------------------ clients that leave


@pytest.mark.parametrize("leave", [Wire.reset, Wire.finish, lambda wire: wire.sock.close()])
def test_a_client_that_leaves_the_line_frees_its_place(
    one: Stack, wires: ExitStack, leave: Callable[[Wire], object]
) -> None:
    before, gone = len(numbers(one)), one.totals()["client_gone"]
    (holder,) = hold(one, wires)
    line = queue(one, wires, 5)
    for number in (0, 2):
        leave(line[number])
    wait_for_line(one, 3)
    until(lambda: one.totals()["client_gone"] == gone + 2, 5, "it was counted")
    holder.reset()
    assert [line[number].answer().status for number in (1, 3, 4)] == [200] * 3
    assert numbers(one)[before:] == [1, 3, 4]


def test_a_client_that_leaves_as_its_turn_comes_gives_it_to_the_next(one: Stack) -> None:
    """The proxy is stopped meanwhile, so it hears of the free place and of the leave in one breath."""
    worker = one.workers[0]
    (process,), engine = one.processes(), worker.state()["engine_pid"]
    for _ in range(8):
        with ExitStack() as wires, stopped(engine):
            finished = worker.state()["finished"]
            holder = wires.enter_context(one.wire()).send(request(body=chat(tokens=1, first_delay=0.2)))
            until(lambda: one.in_flight() == [1], 5, "the place is taken")
            leaver, stayer = queue(one, wires, 2)
            with stopped(process):
                os.kill(engine, signal.SIGCONT)
                until(lambda: worker.state()["finished"] > finished, 5, "the answer is there")  # noqa: B023
                leaver.reset()
            assert holder.answer().status == 200
            assert stayer.answer().status == 200
    one.wait_quiet()


def test_a_hundred_clients_that_leave_the_line_at_once_leave_nothing(one: Stack, wires: ExitStack) -> None:
    hold(one, wires)
    with ExitStack() as line:
        for _ in range(100):
            line.enter_context(one.wire()).send(request(body=SHORT))
        wait_for_line(one, 100)
    wait_for_line(one, 0)
    assert one.in_flight() == [1]


# ------------------------------------------------------------------ processes that end


@contextmanager
def two_processes(new_stack: MakeStack, wires: ExitStack) -> Iterator[tuple[Stack, dict[int, list[Wire]]]]:
    stack = new_stack(workers=1, max_inflight_per_worker=2, queue_timeout=LONG, proxy_processes=2).start()
    yield stack, wires_at_both(stack, wires, 4)


def test_when_a_process_is_killed_the_line_of_the_other_moves_on(
    new_stack: MakeStack, wires: ExitStack
) -> None:
    """It had all places, and those who had waited longest."""
    with two_processes(new_stack, wires) as (stack, ours):
        (lost, theirs), (_, kept) = ours.items()
        for wire in theirs[:2]:
            assert wire.send(request(body=HOLD)).head().status == 200
        for wire in [*theirs[2:4], *kept[:3]]:
            queue_up(stack, wire)
        start = time.monotonic()
        os.kill(lost, signal.SIGKILL)
        assert [wire.answer().status for wire in kept[:3]] == [200] * 3
        assert time.monotonic() - start < 1.5
        until(lambda: len(stack.processes()) == 2, 10, "there are two processes again")
        wait_for_line(stack, 0)
        stack.wait_quiet()
        assert stack.ask(request(body=SHORT)).status == 200


def test_a_process_that_is_stopped_does_not_hold_up_the_line_of_the_other(
    new_stack: MakeStack, wires: ExitStack
) -> None:
    with two_processes(new_stack, wires) as (stack, ours):
        (hung, theirs), (_, kept) = ours.items()
        holders = kept[2:4]
        for wire in holders:
            assert wire.send(request(body=HOLD)).head().status == 200
        for wire in [*theirs[:1], *kept[:2]]:
            queue_up(stack, wire)
        with stopped(hung):
            holders[0].reset()
            assert [wire.answer().status for wire in kept[:2]] == [200] * 2
        assert theirs[0].answer().status == 200


@pytest.mark.parametrize("processes", [1, 2])
def test_at_the_end_who_waits_is_served_if_there_is_time(
    new_stack: MakeStack, wires: ExitStack, processes: int
) -> None:
    stack = new_stack(
        workers=1, max_inflight_per_worker=1, queue_timeout=LONG, proxy_processes=processes
    ).start()
    (holder,) = hold(stack, wires)
    line = queue(stack, wires, 5)
    stack.proxy.send_signal(signal.SIGTERM)
    throughout(lambda: stack.proxy.poll() is None, 0.2, "the proxy waits for its clients")
    holder.reset()
    assert [wire.answer().status for wire in line] == [200] * 5
    assert all(wire.ended() for wire in line)
    stack.proxy.wait(5)
    assert stack.proxy.returncode == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_at_the_end_who_waits_is_told_when_there_is_no_time(
    new_stack: MakeStack, wires: ExitStack, processes: int
) -> None:
    stack = new_stack(
        workers=1,
        max_inflight_per_worker=1,
        queue_timeout=LONG,
        proxy_processes=processes,
        drain_timeout=2.0,
    ).start()
    (holder,) = hold(stack, wires)
    line = queue(stack, wires, 6)
    late = wires.enter_context(stack.wire()).send(request(body=HOLD)[:-1])
    stack.proxy.send_signal(signal.SIGTERM)
    answers = [wire.answer() for wire in line]
    refused = [answer for answer in answers if answer.status != 200]
    # The process that cuts first frees the place, and the other one may just have time to use it.
    assert len(refused) == 6 or processes == 2
    assert {(answer.status, answer.error["code"]) for answer in refused} <= {(503, "shutting_down")}
    assert all(int(answer.header("retry-after") or 0) > 0 for answer in refused)
    assert list(holder.chunks())[-1] is None
    # There is a place for it by now, but no time.
    assert late.send(request(body=HOLD)[-1:]).answer().error["code"] == "shutting_down"
    stack.proxy.wait(5)
    until(lambda: not group_members(stack.proxy.pid), 2, "no process of the proxy is left")


def test_a_reload_keeps_the_line_and_its_order(new_stack: MakeStack, wires: ExitStack) -> None:
    stack = new_stack(
        workers=1, max_inflight_per_worker=1, queue_timeout=LONG, proxy_processes=2, drain_timeout=10.0
    ).start()
    (holder,) = hold(stack, wires)
    line = queue(stack, wires, 6)
    before = set(stack.processes())
    stack.proxy.send_signal(signal.SIGHUP)
    until(lambda: len(set(stack.processes()) - before) == 2, 10, "there are new processes")
    until(lambda: stack.log.read_text().count("-> ready") >= 4, 10, "they know the worker")
    new: list[Wire] = []
    deadline = time.monotonic() + 10
    while len(new) < 4 and time.monotonic() < deadline:
        # For up to a second the old processes take connections, too.
        wire = wires.enter_context(stack.wire(timeout=20))
        with contextlib.suppress(AssertionError):
            pid = until(lambda wire=wire: home(stack, wire), 1, "it was taken")  # type: ignore[misc]
            if pid not in before:
                new.append(queue_up(stack, wire, 6 + len(new)))
    assert len(new) == 4
    holder.reset()
    assert [wire.answer().status for wire in [*line, *new]] == [200] * 10
    assert numbers(stack) == list(range(10))
    wires.close()  # they are kept, and hold the old processes
    until(lambda: not set(stack.processes()) & before, 10, "the old processes have ended")
    assert stack.workers[0].state()["most_in_flight"] == 1
    assert stack.ask(request(body=SHORT)).status == 200
