"""A client that goes takes its request along: no GPU works for nobody."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.proxy.harness import HOST, Stack, Wire, chat, read_request, request
from tests.support.polling import throughout, until

Leave = Callable[[Wire], object]
LEAVES: dict[str, Leave] = {
    "close": lambda wire: wire.sock.close(),
    "reset": lambda wire: wire.reset(),
    "half-close": lambda wire: wire.finish(),
}
# When the client goes: while the worker streams, is silent in a stream, has not begun, will answer whole.
MOMENTS = {
    "mid-stream": chat(stream=True, tokens=500, delay=0.02),
    "silent stream": chat(stream=True, tokens=8, hang=2),
    "before the first token": chat(stream=True, hang=True),
    "in a long prefill": chat(stream=True, first_delay=30),
    "non-streamed": chat(tokens=1000, delay=0.05),
}


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A worker that stays at work for nobody would fail all tests on the shared stack."""
    with Stack(tmp_path_factory.mktemp("gone"), workers=1) as stack:
        yield stack.start()


def leave_and_see(stack: Stack, wire: Wire, leave: Leave) -> None:
    until(lambda: sum(worker.state()["in_flight"] for worker in stack.workers) == 1, 5, "a worker works")
    before = stack.aborted()
    start = time.monotonic()
    leave(wire)
    until(lambda: stack.aborted() == before + 1, 3, "the worker saw the client go")
    assert time.monotonic() - start < 1
    until(lambda: sum(stack.in_flight()) == 0, 1, "nothing is in flight")


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("body", MOMENTS.values(), ids=MOMENTS)
def test_a_client_that_goes_stops_its_worker_within_a_second(
    stack: Stack, body: dict[str, object], leave: Leave
) -> None:
    gone = stack.totals()["client_gone"]
    with stack.wire() as wire:
        leave_and_see(stack, wire.send(request(body=body)), leave)
    until(lambda: stack.totals()["client_gone"] == gone + 1, 1, "it was counted")
    assert stack.all_ready()


@pytest.mark.parametrize(
    "early",
    [b"\r\n", request("GET", "/v1/models"), b"G"],
    ids=["an empty line", "a pipelined request", "half a request"],
)
def test_a_client_that_goes_after_more_bytes_stops_its_worker_too(own_stack: Stack, early: bytes) -> None:
    stack = own_stack
    with stack.wire() as wire:
        wire.send(request(body=chat(stream=True, hang=True)))
        until(lambda: sum(stack.in_flight()) == 1, 5, "it is in flight")
        wire.send(early)
        leave_and_see(stack, wire, LEAVES["close"])


def test_a_client_that_goes_is_no_reason_to_ask_another_worker(stack: Stack) -> None:
    before, retries = stack.count(), stack.retries()
    with stack.wire() as wire:
        leave_and_see(stack, wire.send(request(body=chat(hang=True))), LEAVES["reset"])
    throughout(lambda: stack.count() == before + 1, 0.3, "no second worker is asked")
    assert stack.retries() == retries


def test_a_client_that_goes_leaves_no_half_read_connection_to_the_next(stack: Stack) -> None:
    for number in range(10):
        with stack.wire() as wire:
            wire.send(request(body=chat(stream=True, tokens=50, delay=0.005)))
            assert wire.head().status == 200
        answer = stack.ask(request(body=chat(words=f"number-{number}", tokens=1)))
        assert answer.json["choices"][0]["message"]["content"] == f"0:number-{number} "


def test_a_hundred_clients_that_go_at_once_leave_nothing(stack: Stack) -> None:
    before = stack.aborted()
    with ExitStack() as wires:
        for _ in range(100):
            wires.enter_context(stack.wire()).send(request(body=chat(stream=True, hang=2)))
        until(lambda: sum(stack.in_flight()) == 100, 10, "all are in flight")
        until(lambda: sum(w.state()["in_flight"] for w in stack.workers) == 100, 5, "all are at work")
    until(lambda: stack.aborted() == before + 100, 3, "the workers saw them all go")
    until(lambda: sum(stack.in_flight()) == 0, 2, "nothing is in flight")


def test_a_client_that_goes_while_it_takes_nothing_is_counted_once(stack: Stack) -> None:
    gone = stack.totals()["client_gone"]
    with stack.wire(receive_buffer=4096) as wire:
        wire.send(request(body=chat(stream=True, tokens=2000, size=20_000)))
        assert wire.head().status == 200
        busy = [w for w in stack.workers if w.state()["in_flight"]]
        assert len(busy) == 1
        wire.reset()
    until(lambda: sum(stack.in_flight()) == 0, 2, "nothing is in flight")
    until(lambda: stack.totals()["client_gone"] == gone + 1, 1, "it was counted")


def test_an_answer_that_breaks_is_no_client_that_went(stack: Stack) -> None:
    before = stack.totals()
    answer = stack.ask(request(body=chat(stream=True, reset_after_events=2)))
    assert not answer.whole
    after = stack.totals()
    assert (after["client_gone"], after["failures"]) == (before["client_gone"], before["failures"] + 1)
    stack.wait_ready()


class BusyWorker:
    """A worker that answers its health, and accepts any other connection only when it is let."""

    def __init__(self, port: int) -> None:
        self.address = (HOST, port)
        self.requests: list[bytes] = []
        self.free = threading.Event()
        self._listener = socket.create_server(self.address, backlog=0)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.free.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()
                self.free.wait()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := read_request(sock):
                self.requests.append(data)
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")


def test_a_client_that_goes_while_we_connect_is_not_worked_for(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(workers=1)
    worker = BusyWorker(stack.workers[0].port)
    with ExitStack() as cleaning:
        cleaning.callback(worker.close)
        stack.start(workers=False)
        with contextlib.suppress(TimeoutError):
            while True:  # fill the backlog, so that the next connection has to wait
                cleaning.enter_context(socket.create_connection(worker.address, timeout=0.2))
        with stack.wire() as wire:
            wire.send(request(body=chat()))
            until(lambda: stack.in_flight() == [1], 5, "it is in flight")
        worker.free.set()
        until(lambda: stack.in_flight() == [0], 5, "it is in flight no more")
    assert not any(seen.startswith(b"POST") for seen in worker.requests)
