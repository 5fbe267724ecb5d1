"""gunicorn's reload: old processes retire, and nobody's connection breaks for it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.proxy.harness import Stack, chat, request
from tests.support.polling import until
from tests.support.processes import group_members

MakeStack = Callable[..., Stack]
DRAIN = 1.0


@pytest.fixture
def stack(new_stack: MakeStack) -> Iterator[Stack]:
    """Answers are cut a second after a stop, unless something holds that back."""
    return new_stack(workers=1, drain_timeout=DRAIN).start()


def reload(stack: Stack) -> None:
    """Reload, and wait until the new process serves."""
    before = set(stack.processes())
    sights = stack.log.read_text().count("-> ready")
    stack.proxy.send_signal(signal.SIGHUP)
    until(lambda: set(stack.processes()) - before, 10, "there is a new process")
    until(lambda: stack.log.read_text().count("-> ready") > sights, 10, "it knows the worker")


def edit_settings(stack: Stack, **changes: object) -> None:
    path = stack.out / "proxy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_no_kept_connection_meets_a_closed_door(stack: Stack) -> None:
    """Clients that never try again ask on connections they keep, all through four reloads."""
    done = threading.Event()

    def ask_on() -> int:
        asked = 0
        while not done.is_set():
            with stack.wire() as wire:
                while not done.is_set():
                    answer = wire.send(request(body=chat(tokens=1))).answer()
                    assert answer.status == 200
                    asked += 1
                    if answer.header("connection") == "close":
                        break
                    done.wait(0.002 * (asked % 7))  # sometimes idle just when a process is told to go
        return asked

    with ThreadPoolExecutor(12) as pool:
        clients = [pool.submit(ask_on) for _ in range(12)]
        try:
            for _ in range(4):
                reload(stack)
        finally:
            done.set()
        asked = [client.result() for client in clients]
    assert sum(asked) > 100
    assert stack.totals()["failures"] == 0


def test_a_stream_goes_on_for_longer_than_a_stop_would_let_it(stack: Stack) -> None:
    with stack.wire() as streaming, stack.wire() as idle:
        assert idle.send(request(body=chat(tokens=1))).answer().status == 200
        (old,) = stack.processes()
        streaming.send(request(body=chat(stream=True, tokens=60, delay=0.06)))
        assert streaming.head().status == 200
        begun = time.monotonic()
        reload(stack)
        chunks = list(streaming.chunks())
        assert time.monotonic() - begun > 2 * DRAIN
        assert chunks[-1] == b"data: [DONE]\n\n"
        assert old in stack.processes()
        # Whoever keeps a connection to it has one more answer, which says that it is the last.
        answer = idle.send(request(body=chat(tokens=1))).answer()
        assert (answer.status, answer.header("connection")) == (200, "close")
    until(lambda: old not in stack.processes(), 5, "with its last connection it ends")


def test_a_stop_waits_for_those_who_retire_no_longer_than_for_others(stack: Stack) -> None:
    with stack.wire() as streaming:
        streaming.send(request(body=chat(stream=True, tokens=200, delay=0.05)))
        assert streaming.head().status == 200
        reload(stack)
        begun = time.monotonic()
        stack.proxy.terminate()
        assert b"shutting down" in b"".join(chunk or b"" for chunk in streaming.chunks())
        stack.proxy.wait(DRAIN + 2)
        assert time.monotonic() - begun < DRAIN + 2
    until(lambda: not group_members(stack.proxy.pid), 2, "no process of the proxy is left")


def test_while_one_retires_a_killed_process_is_replaced(stack: Stack) -> None:
    with stack.wire() as streaming:
        (old,) = stack.processes()
        streaming.send(request(body=chat(stream=True, tokens=100, delay=0.05)))
        assert streaming.head().status == 200
        reload(stack)
        (new,) = set(stack.processes()) - {old}
        os.kill(new, signal.SIGKILL)
        until(lambda: set(stack.processes()) - {old, new}, 5, "there is another one")
        stack.wait_ready()
        assert stack.ask(request(body=chat(tokens=1))).status == 200
        assert old in stack.processes()


def test_many_reloads_at_once_find_the_door_open(stack: Stack) -> None:
    """There are rows of shared memory for a few generations; then the oldest have to go."""
    wires = []
    try:
        for _ in range(12):
            wire = stack.wire().send(request(body=chat(stream=True, tokens=400, delay=0.05)))
            assert wire.head().status == 200
            wires.append(wire)
            stack.proxy.send_signal(signal.SIGHUP)
            stack.wait_ready()
        until(lambda: len(stack.processes()) < 11, 10, "some had to make room")
        assert stack.ask(request(body=chat(tokens=1))).status == 200
    finally:
        for wire in wires:
            wire.reset()
    until(lambda: len(stack.processes()) == 1, 10, "the others are gone")


def test_new_settings_hold_after_a_reload(stack: Stack) -> None:
    edit_settings(stack, max_body=2000)
    assert stack.ask(request(body=chat("x" * 3000))).status == 200
    reload(stack)
    until(lambda: stack.ask(request(body=chat("x" * 3000))).status == 413, 5, "the new limit holds")
    assert stack.ask(request(body=chat(tokens=1))).status == 200


@pytest.mark.parametrize("damage", ["another shape", "no JSON", "no object", "a key is missing"])
def test_settings_that_cannot_be_taken_change_nothing(stack: Stack, damage: str) -> None:
    path = stack.out / "proxy.json"
    if damage == "another shape":
        edit_settings(stack, processes=2)
    elif damage == "no JSON":
        path.write_text("{")
    elif damage == "no object":
        path.write_text("[]")
    else:
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "policy"}))
    stack.proxy.send_signal(signal.SIGHUP)
    until(lambda: "The settings of before stay in use" in stack.log.read_text(), 5, "it was said")
    until(lambda: len(stack.processes()) == 1, 5, "the reload is over")
    until(lambda: stack.ask(request(body=chat(tokens=1))).status == 200, 5, "the door is open")
