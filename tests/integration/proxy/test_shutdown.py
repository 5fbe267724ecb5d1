"""The end: streams finish, idle connections go at once, nothing stays, whenever the signal comes."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.proxy.harness import HOST, Stack, chat, request
from tests.support.polling import until
from tests.support.processes import group_members, listeners

MakeStack = Callable[..., Stack]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One worker that outlives the proxies of all tests."""
    with Stack(tmp_path_factory.mktemp("shutdown"), workers=1) as stack:
        stack.workers[0].start()
        yield stack


@pytest.fixture
def stack(kept: Stack) -> Iterator[Stack]:
    """A proxy for the test to end."""
    kept.start_proxy()
    kept.wait_ready()
    yield kept
    if kept.proxy.poll() is None:
        kept.proxy.kill()
    kept.proxy.wait(10)
    until(lambda: not group_members(kept.proxy.pid), 5, "the proxy is gone")


def ended_within(stack: Stack, seconds: float) -> float:
    """Wait for the end of the whole proxy; return how long it took."""
    start = time.monotonic()
    stack.proxy.wait(seconds)
    until(lambda: not group_members(stack.proxy.pid), 2, "no process of the proxy is left")
    return time.monotonic() - start


def refuses(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_lets_a_stream_finish_and_closes_the_door(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=30, delay=0.05)))
        assert wire.head().status == 200
        chunks = wire.chunks()
        next(chunks)
        stack.proxy.send_signal(signal.SIGTERM)
        until(lambda: refuses(stack.port), 2, "new connections are refused")
        received = list(chunks)
        assert received[-1] == b"data: [DONE]\n\n"
        assert len(received) == 32
        assert wire.ended()
    ended_within(stack, 3)
    assert stack.proxy.returncode == 0


def test_idle_connections_end_at_once(stack: Stack) -> None:
    with stack.wire() as fresh, stack.wire() as used:
        assert used.send(request("GET", "/v1/models")).answer().status == 200
        assert used.send(request(body=chat(tokens=1))).answer().status == 200
        start = time.monotonic()
        stack.proxy.send_signal(signal.SIGTERM)
        assert used.ended()
        assert time.monotonic() - start < 0.5
        assert fresh.ended()
        assert time.monotonic() - start < 1.5, "it had a second for its first request"
        assert ended_within(stack, 3) < 3


def test_a_request_in_work_is_answered_and_told_that_the_connection_ends(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(request(body=chat(tokens=1, first_delay=0.8)))
        until(lambda: sum(stack.in_flight()) == 1, 5, "it is in flight")
        stack.proxy.send_signal(signal.SIGTERM)
        assert wire.answer().status == 200
        assert wire.ended()
    assert ended_within(stack, 3) < 3


def test_a_stream_beyond_the_graceful_time_is_cut_and_stopped(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1, drain_timeout=1.0).start()
    with stack.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=2, hang=2)))
        assert wire.head().status == 200
        stack.proxy.send_signal(signal.SIGTERM)
        ended_within(stack, 4)
        assert list(wire.chunks())[-1] is None
    until(lambda: stack.aborted() == 1, 2, "the worker was let off")


def test_a_connection_taken_while_the_door_closes_is_not_left_without_a_word(stack: Stack) -> None:
    """Between the signal and the end of accepting there is up to a second.

    When the listener closes, the kernel resets the connections nobody has taken yet.
    """
    stack.proxy.send_signal(signal.SIGTERM)
    words = set()
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((HOST, stack.port), timeout=2) as sock:
                sock.sendall(request(body=chat(tokens=1)))
                words.add(sock.recv(65536)[:12])
        except ConnectionError:
            break
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, stack.port), timeout=2)
    ended_within(stack, 4)
    assert words <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_other_stops_end_it_too(stack: Stack, signum: signal.Signals) -> None:
    with stack.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=2, hang=2)))
        assert wire.head().status == 200
        stack.proxy.send_signal(signum)
        ended_within(stack, 5)


OFFSETS = [round(number * 0.075, 3) for number in range(20)]


def stop_after(directory: Path, offset: float) -> tuple[float, float, list[str]]:
    """Start a proxy, stop it `offset` seconds later; how long its end took, and who was left."""
    with Stack(directory, workers=1) as stack:
        stack.start_proxy()
        time.sleep(offset)  # the offset is the subject
        stack.proxy.send_signal(signal.SIGTERM)
        told = time.monotonic()
        stack.proxy.wait(20)
        took = time.monotonic() - told
        strays = [str(process) for process in stack.ledger.alive()]
        assert listeners(stack.port) == []
        return offset, took, strays


def test_a_stop_at_any_moment_of_the_start_is_heeded(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stops = list(pool.map(lambda offset: stop_after(tmp_path / str(offset), offset), OFFSETS))
    assert [stop for stop in stops if stop[1] > 4 or stop[2]] == []
