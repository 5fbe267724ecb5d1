"""Where requests go under each policy, through the real proxy and several processes of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.integration.proxy.harness import (
    Answer,
    FakeWorker,
    ScriptedWorker,
    Stack,
    get_json,
    request,
)
from tests.support.polling import until
from vllm_stack.layout import Layout, stopping_notice

MakeStack = Callable[..., Stack]
POLICIES = ["prefix", "session", "least-loaded", "round-robin", "random"]


def say(*words: str) -> dict[str, Any]:
    """A conversation: question, answer, question, ..."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(words)]
    return {"model": "m", "messages": [{"role": "system", "content": "be brief"}, *messages]}


def worker_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    worker = answer.header("x-fake-worker")
    assert worker
    return worker


def ask(stack: Stack, *words: str) -> str:
    return worker_of(stack.ask(request(body=say(*words))))


# ------------------------------------------------------------------ prefix


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Three workers and two proxy processes under the default policy."""
    directory = tmp_path_factory.mktemp("routing")
    with Stack(directory, workers=3, proxy_processes=2) as stack:
        yield stack.start()


def test_by_default_the_turns_of_a_conversation_find_one_worker_whatever_process_gets_them(
    trio: Stack,
) -> None:
    conversations = [[f"question {number}"] for number in range(24)]
    homes: dict[str, set[str]] = {words[0]: set() for words in conversations}
    for _ in range(6):
        for words in conversations:
            homes[words[0]].add(ask(trio, *words))
            words += ["an answer", "and then?"]
    assert {len(workers) for workers in homes.values()} == {1}
    assert len(set.union(*homes.values())) == 3


def test_a_conversation_survives_its_worker_and_comes_home_to_it(trio: Stack) -> None:
    homes = {f"lasting {number}": ask(trio, f"lasting {number}") for number in range(12)}
    home: FakeWorker = next(w for w in trio.workers if str(w.port) == homes["lasting 0"])
    home.kill()
    for words, before in homes.items():
        now = ask(trio, words)
        assert now == ask(trio, words, "a", "b")
        assert now == before or before == str(home.port)
        assert now != str(home.port)
    home.start()
    trio.wait_ready()
    assert {words: ask(trio, words) for words in homes} == homes


@pytest.mark.parametrize(
    "body",
    [b"\xff\x00garbage", b'{"messages":' + b"[" * 100_000, b"[]", b'{"messages": [{"role": "user"}]}'],
    ids=["garbage", "nesting", "a list", "no content"],
)
def test_what_does_not_decode_is_passed_on_as_it_is(
    scripted: tuple[Stack, list[ScriptedWorker]], body: bytes
) -> None:
    stack, workers = scripted

    def play(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nno")
        return True

    for worker in workers:
        worker.play = play
    answer = stack.ask(request(body=body, content_type="application/json"))
    assert (answer.status, answer.body) == (400, b"no")
    assert [data.partition(b"\r\n\r\n")[2] for worker in workers for data in worker.requests] == [body]


class Held:
    """Scripted workers that answer nothing until they are let go."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.go = threading.Event()
        self.workers = [ScriptedWorker(worker.port) for worker in stack.workers]
        for worker in self.workers:
            worker.play = self._play

    def _play(self, sock: socket.socket, data: bytes) -> bool:
        self.go.wait(20)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        return True

    def close(self) -> None:
        self.go.set()
        for worker in self.workers:
            worker.close()


@pytest.fixture
def held(new_stack: MakeStack) -> Iterator[Callable[..., Held]]:
    with ExitStack() as stack_of_contexts:

        def make(**options: Any) -> Held:
            stack = new_stack(**options)
            held = Held(stack)
            stack_of_contexts.callback(held.close)
            stack.start(workers=False)
            return held

        yield make


@pytest.mark.parametrize("shared", [True, False], ids=["one prompt", "many conversations"])
@pytest.mark.parametrize("policy", ["prefix", "least-loaded"])
def test_requests_at_one_time_are_spread_evenly(held: Callable[..., Held], policy: str, shared: bool) -> None:
    workers = held(policy=policy, workers=4)
    with ThreadPoolExecutor(16) as pool:
        answers = []
        for number in range(16):
            body = say("the same" if shared else f"question {number}")
            answers.append(pool.submit(workers.stack.ask, request(body=body)))
            until(lambda n=number: sum(workers.stack.in_flight()) == n + 1, 5, "the request is on its way")
        loads = workers.stack.in_flight()
        workers.go.set()
        assert {answer.result().status for answer in answers} == {200}
    assert loads == [4] * 4
    until(lambda: not any(workers.stack.in_flight()), 5, "nothing is in flight")


def test_a_conversation_whose_worker_breaks_goes_on_with_the_next(new_stack: MakeStack) -> None:
    stack, seen = new_stack(workers=2), list[int]()

    def play(sock: socket.socket, data: bytes) -> bool:
        seen.append(sock.getsockname()[1])
        if len(seen) > 1:  # the very first request sees its worker hang up
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        return len(seen) > 1

    with ExitStack() as stack_of_contexts:
        for fake in stack.workers:
            worker = ScriptedWorker(fake.port)
            stack_of_contexts.callback(worker.close)
            worker.play = play
        stack.start(workers=False)
        assert stack.ask(request(body=say("hello"))).status == 200
    assert len(set(seen)) == 2


# ------------------------------------------------------------------ session


def test_a_session_stays_with_its_worker_and_a_request_without_one_does_not(new_stack: MakeStack) -> None:
    stack = new_stack(policy="session", session_header="x-conversation", workers=3, proxy_processes=2).start()

    def workers_of(**headers: str) -> set[str]:
        body = [say(f"question {number}") for number in range(12)]
        return {worker_of(stack.ask(request(body=one, **headers))) for one in body}

    sessions = [workers_of(x_conversation=f"session {number}") for number in range(12)]
    assert {len(workers) for workers in sessions} == {1}
    assert len(set.union(*sessions)) == 3
    assert len(workers_of()) > 1
    assert len(workers_of(x_session_id="another header")) > 1


# ------------------------------------------------------------------ stored responses


class Librarian:
    """A worker that knows some responses, as vLLM does: by its own memory."""

    def __init__(self, port: int, known: set[str]) -> None:
        self.worker = ScriptedWorker(port)
        self.worker.play = self._play
        self.known = known
        self._closed = False

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.worker.close()

    def asked(self) -> list[str]:
        return [data.split(b" ", 2)[1].decode() for data in self.worker.requests]

    def _play(self, sock: socket.socket, data: bytes) -> bool:
        head, _, body = data.partition(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode().partition("?")[0]
        if path == "/v1/responses":
            given = json.loads(body)
            wanted = given.get("previous_response_id")
            found = given["model"] == "m" and (wanted is None or wanted in self.known)
        else:
            found = path.split("/")[3] in self.known
        answer = json.dumps({"worker": self.worker.port, "found": found}).encode()
        status = b"200 OK" if found else b"404 Not Found"
        sock.sendall(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(answer), answer))
        return True


Library = tuple[Stack, list[Librarian]]


@pytest.fixture
def library(new_stack: MakeStack) -> Iterator[Callable[..., Library]]:
    with ExitStack() as stack_of_contexts:

        def make(**options: Any) -> Library:
            stack = new_stack(**{"workers": 4, "proxy_processes": 2, **options})
            librarians = [Librarian(w.port, {f"resp_{w.index}"}) for w in stack.workers]
            for librarian in librarians:
                stack_of_contexts.callback(librarian.close)
            stack.start(workers=False)
            return stack, librarians

        yield make


def about(wanted: str) -> list[bytes]:
    """Every request that names a stored response."""
    path = f"/v1/responses/{wanted}"
    return [
        request("GET", path),
        request("GET", path + "?stream=true"),
        request("DELETE", path),
        request("POST", path + "/cancel"),
        request("GET", path + "/input_items"),
        request(body={"model": "m", "input": "go on", "previous_response_id": wanted}, path="/v1/responses"),
    ]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stored_response_is_found_on_the_worker_that_made_it(
    library: Callable[..., Library], policy: str
) -> None:
    stack, librarians = library(policy=policy)
    for index, librarian in enumerate(librarians):
        for data in about(f"resp_{index}") * 2:
            answer = stack.ask(data)
            assert (answer.status, answer.json.get("worker")) == (200, librarian.worker.port), answer
    assert get_json(stack.admin_port, "/workers")["totals"]["failures"] == 0


def test_a_response_that_nobody_knows_is_404_after_everybody_was_asked_once(
    library: Callable[..., Library],
) -> None:
    stack, librarians = library()
    for data in about("resp_unknown"):
        answer = stack.ask(data)
        assert (answer.status, answer.json["found"]) == (404, False)
    assert [len(librarian.asked()) for librarian in librarians] == [len(about(""))] * 4
    assert get_json(stack.admin_port, "/workers")["totals"]["retries_elsewhere"] == 3 * len(about(""))


def test_another_404_is_an_answer_and_nobody_else_is_asked(library: Callable[..., Library]) -> None:
    stack, librarians = library()
    answer = stack.ask(request(path="/v1/responses", body={"model": "unknown", "input": "hello"}))
    assert answer.status == 404
    assert sum(len(librarian.asked()) for librarian in librarians) == 1


def test_a_worker_that_is_dead_knows_nothing_and_hides_nothing(library: Callable[..., Library]) -> None:
    stack, librarians = library(proxy_processes=1)
    librarians[2].close()
    until(lambda: not stack.all_ready(), 5, "worker-2 is out")
    assert stack.ask(request("GET", "/v1/responses/resp_0")).status == 200
    until(
        lambda: stack.ask(request("GET", "/v1/responses/resp_2")).status == 404,
        5,
        "what a dead worker knew is gone",
    )


def test_a_worker_that_lives_but_is_out_may_know_so_the_answer_is_to_try_again(
    library: Callable[..., Library],
) -> None:
    stack, _ = library(proxy_processes=1)
    notice = stopping_notice(Layout.at(stack.out).state, "worker-2")
    notice.touch()
    until(lambda: not stack.all_ready(), 5, "worker-2 is out")
    answer = stack.ask(request("GET", "/v1/responses/resp_2"))
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    assert answer.header("retry-after")
    assert stack.ask(request("GET", "/v1/responses/resp_1")).status == 200
    notice.unlink()
    stack.wait_ready()
    assert stack.ask(request("GET", "/v1/responses/resp_2")).status == 200


def test_a_kept_connection_that_died_does_not_count_as_having_asked(library: Callable[..., Library]) -> None:
    stack, (maker, _) = library(workers=2, proxy_processes=1)
    answer_it, drops = maker.worker.play, threading.Event()

    def play(sock: socket.socket, data: bytes) -> bool:
        if drops.is_set():
            drops.clear()
            return False
        return answer_it(sock, data)

    maker.worker.play = play
    for _ in range(12):  # either worker may be asked first
        assert stack.ask(request("GET", "/v1/responses/resp_0")).status == 200
        drops.set()  # and now its connection is kept
        assert stack.ask(request("GET", "/v1/responses/resp_0")).status == 200
