"""Workers on unix sockets: the same proxy, nothing on a port."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.integration.proxy.harness import Stack, chat, get_metrics, request
from tests.support.polling import until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("unix"), worker_transport="unix", policy="least-loaded") as stack:
        yield stack.start()


@pytest.fixture
def unix(shared: Stack) -> Iterator[Stack]:
    yield shared
    shared.wait_quiet()
    shared.check_log()


def test_whole_answers_and_streams_come_over_both_sockets(unix: Stack) -> None:
    def one(number: int) -> tuple[int, bool, str | None]:
        answer = unix.ask(request(body=chat(stream=number % 2 == 0, tokens=5, delay=0.01)))
        return answer.status, answer.whole, answer.header("x-fake-worker")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(40)))
    assert {(status, whole) for status, whole, _ in answers} == {(200, True)}
    assert {name for _, _, name in answers} == {"worker-0", "worker-1"}


def test_connections_are_kept_and_used_again(unix: Stack) -> None:
    def opened() -> int:
        return sum(worker.state()["connections_opened"] for worker in unix.workers)

    for _ in range(4):
        unix.ask(request(body=chat(tokens=1)))
    before = opened()
    for _ in range(10):
        assert unix.ask(request(body=chat(tokens=1))).status == 200
    assert opened() - before <= 2 + 2 * len(unix.workers)  # our own looks at the state are among them


def test_a_client_that_goes_is_told_to_its_worker(unix: Stack) -> None:
    before = unix.aborted()
    with unix.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=500, delay=0.02)))
        assert next(iter(wire.chunks() if wire.head().status == 200 else []))
    until(lambda: unix.aborted() == before + 1, 2, "the worker saw the client go")


def test_the_metrics_of_both_are_told_by_the_admin_door(unix: Stack) -> None:
    assert get_metrics(unix.admin_port).count("\nvllm:num_requests_running{") == 2


def test_the_admin_door_shows_where_each_worker_listens(unix: Stack) -> None:
    assert [worker["address"] for worker in unix.admin()["workers"]] == [
        f"unix:{unix.out}/run/worker-0.sock",
        f"unix:{unix.out}/run/worker-1.sock",
    ]


@pytest.mark.parametrize("left", ["a socket nobody listens on", "nothing"])
def test_a_dead_worker_is_passed_over_and_taken_back(unix: Stack, left: str) -> None:
    """A killed server leaves its socket behind: connects are refused. Without it there is no such file."""
    dead, other = unix.workers
    dead.kill()
    assert dead.socket is not None
    if left == "nothing":
        dead.socket.unlink()
    killed = time.monotonic()
    until(lambda: not unix.admin()["workers"][0]["ready"], 1, "the proxy noticed at once, unasked")
    assert time.monotonic() - killed < 1
    for _ in range(5):
        answer = unix.ask(request(body=chat(tokens=1)))
        assert (answer.status, answer.header("x-fake-worker")) == (200, other.name)
    dead.start()
    unix.wait_ready()
