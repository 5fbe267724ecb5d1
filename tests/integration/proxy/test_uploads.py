"""Bodies too large to be held: they flow to one worker, in bounded memory, and only once."""

from __future__ import annotations

import email
import hashlib
import http.client
import io
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import gevent
import openai
import psutil
import pytest

from tests.integration.proxy.harness import (
    HOST,
    KEY,
    ScriptedWorker,
    Stack,
    chat,
    close_hard,
    read_begin,
    request,
)
from tests.support.certificates import make_certificate
from tests.support.polling import throughout, until
from vllm_stack.proxy import client as client_module
from vllm_stack.proxy.client import Client
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.request import HELD_BODY
from vllm_stack.proxy.scoreboard import Scoreboard
from vllm_stack.proxy.settings import read_settings

MakeStack = Callable[..., Stack]
Scripted = tuple[Stack, list[ScriptedWorker]]
MIB = 1024 * 1024
PATH = "/v1/audio/transcriptions"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture(scope="module")
def shared_raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with ExitStack() as contexts:
        stack = contexts.enter_context(Stack(tmp_path_factory.mktemp("raw"), policy="round-robin"))
        workers = [ScriptedWorker(worker.port) for worker in stack.workers]
        for worker in workers:
            worker.read = read_begin
            contexts.callback(worker.close)
        stack.start(workers=False)
        yield stack, workers


@pytest.fixture
def raw(shared_raw: Scripted) -> Iterator[Scripted]:
    """Two workers that get a request as soon as its head is there, and read on as the test says."""
    stack, workers = shared_raw
    stack.wait_ready()
    for worker in workers:
        worker.hang_up()
        worker.requests.clear()
    yield shared_raw
    for worker in workers:
        worker.play = lambda sock, data: False
        worker.hang_up()
    until(lambda: not any(stack.in_flight()), 5, "the proxy has nothing in flight")
    stack.check_log()


def play(workers: list[ScriptedWorker], scene: Callable[[socket.socket, bytes], bool]) -> None:
    for worker in workers:
        worker.play = scene


def count(workers: list[ScriptedWorker]) -> int:
    return sum(len(worker.requests) for worker in workers)


def head(length: int | None, path: str = PATH, **headers: str) -> bytes:
    framing = {"transfer_encoding": "chunked"} if length is None else {"content_length": str(length)}
    return request(path=path, **framing, **headers)


def noise(size: int) -> bytes:
    return os.urandom(size)


def chunked(body: bytes, size: int = 200_000) -> bytes:
    parts = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def body_after(sock: socket.socket, data: bytes, length: int) -> bytes:
    """Read the rest of a body whose beginning came with its head."""
    body = bytearray(data.partition(b"\r\n\r\n")[2])
    while len(body) < length and (more := sock.recv(MIB)):
        body += more
    return bytes(body)


# ------------------------------------------------------------------ what arrives


@pytest.mark.parametrize("size", [HELD_BODY, HELD_BODY + 1, 8 * MIB + 3], ids=["held", "one more", "large"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_large_body_arrives_whole_and_the_connection_goes_on(stack: Stack, size: int, coding: str) -> None:
    body = noise(size)
    with stack.wire() as wire:
        sent = head(size) + body if coding == "length" else head(None) + chunked(body)
        assert wire.send(sent).answer().status == 404  # the fake has no such route, and has read it all
        assert wire.goes_on()
    digest = hashlib.sha256(body).hexdigest()
    seen = next(r for w in stack.workers for r in w.requests() if r["body_sha256"] == digest)
    assert seen["body_length"] == size
    names = {name.lower() for name, _ in seen["headers"]}
    if coding == "chunked" and size > 2 * HELD_BODY:
        assert "transfer-encoding" in names
        assert "content-length" not in names
    else:
        assert ("transfer-encoding" in names) != ("content-length" in names)
    assert stack.malformed() == []


def test_what_follows_a_large_body_on_its_connection_is_answered_in_order(stack: Stack) -> None:
    body = noise(3 * MIB)
    with stack.wire() as wire:
        wire.send(head(len(body)) + body + request(body=chat(tokens=2)) + request("GET", "/livez"))
        assert [wire.answer().status for _ in range(3)] == [404, 200, 200]


def test_a_large_body_has_no_routing_key_and_is_served(stack: Stack) -> None:
    answer = stack.ask(request(body=chat(words="x" * (2 * MIB), tokens=2)))
    assert (answer.status, answer.whole) == (200, True)


def test_a_large_body_flows_over_tls(tmp_path_factory: pytest.TempPathFactory, new_stack: MakeStack) -> None:
    files = make_certificate(tmp_path_factory.mktemp("certificates"))
    stack = new_stack(**files.options)
    stack.tls = files.client
    stack.start()
    body = noise(4 * MIB)
    with stack.wire() as wire:
        assert wire.send(head(len(body)) + body).answer().status == 404
        assert wire.goes_on()
    digest = hashlib.sha256(body).hexdigest()
    assert digest in {r["body_sha256"] for w in stack.workers for r in w.requests()}


def test_a_large_body_flows_to_a_unix_socket(new_stack: MakeStack) -> None:
    stack = new_stack(worker_transport="unix").start()
    body = noise(4 * MIB)
    assert stack.ask(head(len(body)) + body).status == 404
    digest = hashlib.sha256(body).hexdigest()
    assert digest in {r["body_sha256"] for w in stack.workers for r in w.requests()}


def test_a_client_that_waits_for_100_continue_uploads(stack: Stack) -> None:
    body = noise(3 * MIB)
    with stack.wire() as wire:
        assert wire.send(head(len(body), expect="100-continue")).head().status == 100
        assert wire.send(body).answer().status == 404
        assert wire.goes_on()
    digest = hashlib.sha256(body).hexdigest()
    assert digest in {r["body_sha256"] for w in stack.workers for r in w.requests()}


def test_the_openai_client_uploads_speech(raw: Scripted) -> None:
    stack, workers = raw
    speech = noise(5 * MIB)
    seen = []

    def transcribe(sock: socket.socket, data: bytes) -> bool:
        start, _, _ = data.partition(b"\r\n\r\n")
        fields = (line.split(b": ", 1) for line in start.split(b"\r\n")[1:])
        lines = {name.lower(): value for name, value in fields}
        body = body_after(sock, data, int(lines[b"content-length"]))
        seen.append(email.message_from_bytes(b"content-type: " + lines[b"content-type"] + b"\r\n\r\n" + body))
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 17\r\n\r\n")
        sock.sendall(b'{"text": "hello"}')
        return True

    play(workers, transcribe)
    base = f"http://{HOST}:{stack.port}/v1"
    with openai.OpenAI(base_url=base, api_key=KEY, max_retries=0, timeout=20) as client:
        heard = client.audio.transcriptions.create(model="whisper", file=("a.wav", io.BytesIO(speech)))
    assert heard.text == "hello"
    (message,) = seen
    parts = {part.get_param("name", header="content-disposition"): part for part in message.get_payload()}
    assert parts["model"].get_payload() == "whisper"
    assert parts["file"].get_payload(decode=True) == speech


# ------------------------------------------------------------------ how it flows


def test_the_worker_has_the_beginning_before_the_client_has_sent_the_rest(raw: Scripted) -> None:
    stack, workers = raw
    body = noise(4 * MIB)
    begun, arrived = threading.Event(), []

    def scene(sock: socket.socket, data: bytes) -> bool:
        begun.set()
        arrived.append(body_after(sock, data, len(body)))
        sock.sendall(OK)
        return True

    play(workers, scene)
    with stack.wire() as wire:
        wire.send(head(len(body)) + body[: HELD_BODY // 2])
        throughout(lambda: not begun.is_set() and not any(stack.in_flight()), 0.2, "no worker is asked yet")
        wire.send(body[HELD_BODY // 2 : 2 * MIB])
        assert begun.wait(5)
        assert sum(stack.in_flight()) == 1
        assert wire.send(body[2 * MIB :]).answer().status == 200
    assert arrived == [body]


def test_a_worker_that_takes_nothing_holds_the_client_up_and_not_the_memory(raw: Scripted) -> None:
    stack, workers = raw
    size = 60 * MIB
    take, arrived = threading.Event(), []

    def scene(sock: socket.socket, data: bytes) -> bool:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        assert take.wait(20)
        arrived.append(len(body_after(sock, data, size)))
        sock.sendall(OK)
        return True

    play(workers, scene)
    (process,) = psutil.Process(stack.proxy.pid).children()
    before = process.memory_info().rss
    sent, piece = 0, b"x" * MIB
    with stack.wire() as wire:
        wire.send(head(size))
        wire.sock.settimeout(1)
        with suppress(TimeoutError):
            while sent < size:
                sent += wire.sock.send(piece[: size - sent])
        assert sent < 40 * MIB  # what the kernel's buffers hold, and no more
        assert process.memory_info().rss - before < 8 * MIB
        take.set()
        wire.sock.settimeout(20)
        while sent < size:
            sent += wire.sock.send(piece[: size - sent])
        assert wire.answer().status == 200
    assert arrived == [size]
    assert process.memory_info().rss - before < 8 * MIB


# ------------------------------------------------------------------ what goes wrong


def test_a_worker_that_answers_early_is_heard_while_the_client_still_sends(raw: Scripted) -> None:
    stack, workers = raw
    refusal = b"HTTP/1.1 415 No\r\ncontent-length: 7\r\n\r\nnot wav"
    ended = threading.Event()

    def scene(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(refusal)
        with suppress(OSError):
            while sock.recv(MIB):
                pass
        ended.set()
        return False

    play(workers, scene)
    with stack.wire() as wire:
        answer = wire.send(head(40 * MIB) + noise(2 * MIB)).answer()
        assert (answer.status, answer.body) == (415, b"not wav")
        assert answer.header("connection") == "close"
        assert ended.wait(2)
        assert wire.ended()
    assert count(workers) == 1


def test_a_worker_that_answers_and_hangs_up_at_once_is_heard(raw: Scripted) -> None:
    stack, workers = raw

    def scene(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(b"HTTP/1.1 413 No\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        return False

    play(workers, scene)
    seen = set()
    for _ in range(10):
        with stack.wire() as wire:
            answer = wire.send(head(4 * MIB) + noise(2 * MIB)).answer()
            seen.add((answer.status, answer.body if answer.status == 413 else answer.error["code"]))
            assert wire.ended()
        stack.wait_ready()
    # Its reset may overtake its words, but not each time.
    assert (413, b"big") in seen
    assert seen <= {(413, b"big"), (502, "upstream_error")}


@pytest.mark.parametrize("hard", [True, False], ids=["reset", "closed"])
def test_a_worker_that_dies_under_a_large_body_is_502_and_nobody_else_gets_it(
    raw: Scripted, hard: bool
) -> None:
    stack, workers = raw

    def scene(sock: socket.socket, data: bytes) -> bool:
        sock.recv(MIB // 2)
        if hard:
            close_hard(sock)
        return False

    play(workers, scene)
    with stack.wire() as wire:
        answer = wire.send(head(5 * MIB, "/v1/chat/completions") + noise(3 * MIB)).answer()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        assert wire.ended()
    assert count(workers) == 1
    assert stack.retries() == 0


def test_a_worker_that_does_not_listen_is_passed_over(new_stack: MakeStack) -> None:
    stack = new_stack(workers=4, policy="round-robin").start()
    body = noise(2 * MIB)
    for worker in stack.workers[:3]:
        worker.kill()
    answers = [stack.ask(head(len(body)) + body).status for _ in range(4)]
    assert answers == [404] * 4
    assert {r["body_length"] for r in stack.workers[3].requests()} == {len(body)}


@pytest.mark.parametrize("way", ["close", "reset", "half"])
def test_a_client_that_leaves_in_the_middle_takes_the_worker_off(raw: Scripted, way: str) -> None:
    stack, workers = raw
    begun, ended = threading.Event(), threading.Event()

    def scene(sock: socket.socket, data: bytes) -> bool:
        begun.set()
        with suppress(OSError):
            while sock.recv(MIB):
                pass
        ended.set()
        return False

    play(workers, scene)
    with stack.wire() as wire:
        wire.send(head(9 * MIB) + noise(2 * MIB))
        assert begun.wait(5)
        if way == "half":
            answer = wire.finish().answer()
            assert (answer.status, answer.error["code"]) == (400, "bad_request")
        elif way == "reset":
            wire.reset()
        else:
            wire.sock.close()
        assert ended.wait(1)
    until(lambda: not any(stack.in_flight()), 1, "nothing is in flight")


@pytest.mark.parametrize(
    ("rest", "status"),
    [((b"100000\r\n" + b"x" * MIB + b"\r\n") * 66, 413), (chunked(b"x" * 2 * MIB)[:-5] + b"zz\r\n", 400)],
    ids=["too large", "bad chunks"],
)
def test_a_body_that_goes_wrong_is_refused_and_the_worker_gets_no_end_of_it(
    raw: Scripted, rest: bytes, status: int
) -> None:
    stack, workers = raw
    arrived = []

    def scene(sock: socket.socket, data: bytes) -> bool:
        arrived.append(body_after(sock, data, 100 * MIB)[-5:])
        return False

    play(workers, scene)
    with stack.wire(timeout=20) as wire:
        assert wire.send(head(None) + rest).answer().status == status
    until(lambda: len(arrived) == 1, 5, "the worker's connection has ended")
    assert arrived != [b"0\r\n\r\n"]


def test_a_health_probe_with_a_large_body_is_refused(stack: Stack) -> None:
    with stack.wire() as wire:
        answer = wire.send(head(5 * MIB, "/health") + noise(2 * MIB)).answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_a_shutdown_ends_an_upload_that_does_not_end(new_stack: MakeStack) -> None:
    stack = new_stack(drain_timeout=2.0).start()
    with stack.wire() as wire:
        wire.send(head(9 * MIB) + noise(2 * MIB))
        until(lambda: sum(stack.in_flight()) == 1, 5, "it is in flight")
        start = time.monotonic()
        stack.proxy.terminate()
        answer = wire.answer()
        assert (answer.status, answer.error["code"]) == (503, "shutting_down")
        assert stack.proxy.wait(10) == 0
        assert time.monotonic() - start < 6


def test_a_large_body_that_stops_coming_is_408(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that the deadline can be shortened."""
    monkeypatch.setattr(client_module, "BODY_GRACE", 0.3)
    stack = Stack(tmp_path)
    settings = read_settings(stack.out / "proxy.json")
    board = Scoreboard(1, len(settings.servers))
    door = Door(settings, board, board.row(board.take_row()))
    worker = ScriptedWorker(stack.workers[0].port)
    worker.read = read_begin
    ended = threading.Event()

    def scene(sock: socket.socket, data: bytes) -> bool:
        body_after(sock, data, 100 * MIB)
        ended.set()
        return False

    worker.play = scene
    door.backends.all[0].mark(True, "ready")
    ours, theirs = gevent.socket.socketpair()
    serving = gevent.spawn(Client(door, theirs, HOST).serve)
    try:
        ours.settimeout(5)
        ours.sendall(head(9 * MIB) + noise(2 * MIB))
        answer: Any = http.client.HTTPResponse(ours)
        answer.begin()
        assert answer.status == 408
        assert ended.wait(2)
        assert list(door.board.loads()) == [0, 0]
    finally:
        ours.close()
        serving.join(5)
        worker.close()
    assert serving.successful()
