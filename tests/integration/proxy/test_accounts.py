"""Every request has its line, and its place in the tally, however it ended."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.proxy.harness import KEY, Stack, chat, request
from tests.support.polling import until

SECRET = "what-nobody-else-may-read"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    place = tmp_path_factory.mktemp("accounts")
    with Stack(place, workers=2, proxy_processes=2, policy="least-loaded") as stack:
        yield stack.start()


def logged(stack: Stack) -> list[dict[str, Any]]:
    path = stack.out / "logs/requests.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def line_of(stack: Stack, name: str) -> dict[str, Any]:
    """Give the one line of the request that the client called so."""

    def found() -> list[dict[str, Any]]:
        return [line for line in logged(stack) if line["id"] == name]

    until(found, 5, f"{name} has a line")
    (line,) = found()
    return line


def named(name: str, method: str = "POST", path: str = "/v1/chat/completions", **fake: Any) -> bytes:
    """Make a request that is called so, and says a secret in its body, its headers and its query."""
    body = chat(words=SECRET, **fake) if method == "POST" else None
    return request(method, f"{path}?secret={SECRET}", body, x_request_id=name, x_secret=SECRET)


def test_an_answer_has_a_line_with_who_what_where_and_how_long(stack: Stack) -> None:
    answer = stack.ask(named("plain", tokens=3))
    line = line_of(stack, "plain")
    assert (line["status"], line["end"], line["key"]) == (200, "whole", "key-1")
    assert (line["method"], line["route"]) == ("POST", "/v1/chat/completions")
    assert line["worker"] in ("worker-0", "worker-1")
    assert line["model"].endswith("/model")
    assert line["bytes_in"] == len(json.dumps(chat(words=SECRET, tokens=3)))
    assert line["bytes_out"] > len(answer.body)
    assert 0 < line["first_byte_ms"] <= line["duration_ms"] < 10_000
    assert line["retries"] == 0


def test_a_stream_counts_every_byte_and_when_it_began(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(named("stream", stream=True, tokens=10, delay=0.05))
        head = wire.head()
        sent = sum(len(chunk or b"") for chunk in wire.chunks())
    line = line_of(stack, "stream")
    assert head.status == 200
    assert line["bytes_out"] > sent
    assert line["first_byte_ms"] < 400 < line["duration_ms"]


def test_what_never_came_to_a_worker_has_a_line_too(stack: Stack) -> None:
    assert stack.ask(named("closed", "GET", "/metrics")).status == 404
    line = line_of(stack, "closed")
    assert (line["status"], line["worker"], line["route"]) == (404, None, "other")
    keyless = named("keyless").replace(KEY.encode(), b"no-key-of-ours")
    assert stack.ask(keyless).status == 401
    assert (line_of(stack, "keyless")["status"], line_of(stack, "keyless")["key"]) == (401, None)


def test_a_second_try_and_a_broken_stream_are_told(stack: Stack) -> None:
    assert stack.ask(named("broken-twice", close_before_head=True)).status == 502
    line = line_of(stack, "broken-twice")
    assert (line["status"], line["retries"], line["end"]) == (502, 1, "whole")
    with stack.wire() as wire:
        wire.send(named("broken-stream", stream=True, tokens=9, reset_after_events=3))
        wire.head()
        list(wire.chunks())
    line = line_of(stack, "broken-stream")
    assert (line["status"], line["end"]) == (200, "cut")


def test_a_client_that_left_is_told_by_when_it_did(stack: Stack) -> None:
    with stack.wire() as wire:
        wire.send(named("left-early", tokens=1, delay=5.0))
        until(lambda: any(stack.in_flight()), 5, "it is with a worker")
        wire.reset()
    assert (line_of(stack, "left-early")["status"], line_of(stack, "left-early")["end"]) == (499, "left")
    with stack.wire() as wire:
        wire.send(named("left-late", stream=True, tokens=100, delay=0.05))
        wire.head()
        next(wire.chunks())
        wire.reset()
    assert (line_of(stack, "left-late")["status"], line_of(stack, "left-late")["end"]) == (200, "left")


def test_no_line_has_anything_of_what_was_asked(stack: Stack) -> None:
    stack.ask(named("secretive"))
    line_of(stack, "secretive")
    text = (stack.out / "logs/requests.jsonl").read_text()
    assert SECRET not in text
    assert KEY not in text


def test_health_is_not_logged(stack: Stack) -> None:
    for path in ("/health", "/livez"):
        assert stack.ask(named("probe", "GET", path)).status == 200
    line_of(stack, "plain")
    stack.ask(named("after-probes"))
    line_of(stack, "after-probes")
    assert not [line for line in logged(stack) if line["id"] == "probe"]


def test_processes_that_are_killed_and_reloaded_lose_no_whole_line_of_others(
    new_stack: Callable[..., Stack],
) -> None:
    stack = new_stack(workers=1, proxy_processes=2).start()
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(stack.ask, named(f"one-{number}", tokens=1)) for number in range(60)]
        assert {future.result().status for future in asked} == {200}
    until(lambda: len(logged(stack)) == 60, 5, "all are logged")
    os.kill(stack.processes()[0], signal.SIGKILL)
    until(lambda: len(stack.processes()) == 2, 10, "there is another one")
    stack.proxy.send_signal(signal.SIGHUP)
    until(lambda: stack.ask(named("after", tokens=1)).status == 200, 10, "it serves")
    assert len({line["id"] for line in logged(stack)}) >= 60


def test_without_a_log_there_is_none(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(workers=1, no_access_log=True).start()
    assert stack.ask(named("unlogged")).status == 200
    assert stack.proxy.poll() is None
    assert not (stack.out / "logs/requests.jsonl").exists()


def test_the_last_requests_before_a_stop_have_their_lines(new_stack: Callable[..., Stack]) -> None:
    stack = new_stack(workers=1).start()
    for number in range(5):
        assert stack.ask(named(f"last-{number}", tokens=1)).status == 200
    stack.proxy.terminate()
    stack.proxy.wait(10)
    assert [line["id"] for line in logged(stack)] == [f"last-{number}" for number in range(5)]
