"""Answers on their way: one by one, whole, and never padded when the worker fails."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import psutil
import pytest

from tests.integration.proxy.conftest import Scripted, scripted_stack
from tests.integration.proxy.harness import Answer, Stack, chat, request
from tests.support.polling import until
from tests.support.processes import group_members
from vllm_stack.native import SWITCH


@pytest.fixture(scope="module", params=["C", "Python"])
def shared_stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Here the proxy relays in C, and then once more in Python alone."""
    with Stack(tmp_path_factory.mktemp("proxy")) as stack:
        yield in_language(stack, request.param).start()


@pytest.fixture(scope="module", params=["C", "Python"])
def shared_scripted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scripted]:
    stack = in_language(Stack(tmp_path_factory.mktemp("scripted")), request.param)
    with stack, scripted_stack(stack) as scripted:
        yield scripted


def in_language(stack: Stack, language: str) -> Stack:
    stack.proxy_env[SWITCH] = "1" if language == "C" else "0"
    return stack


def test_the_log_says_what_relays(stack: Stack) -> None:
    language = "C" if stack.proxy_env[SWITCH] == "1" else "Python"
    assert f"Streams are relayed in {language}" in stack.log.read_text()


def error_of(event: bytes) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(event.removeprefix(b"data: "))["error"]
    return error


def stream(stack: Stack, version: str = "1.1", **fake: Any) -> Answer:
    return stack.ask(request(body=chat(stream=True, **fake), version=version))


def test_events_arrive_one_by_one(stack: Stack) -> None:
    answer = stream(stack, tokens=8, delay=0.05)
    times = [at for at, _ in answer.chunks]
    assert all(chunk.count(b"\n\n") == 1 for _, chunk in answer.chunks)
    assert len(times) == 11
    assert times[8] - times[0] > 0.3
    assert max(b - a for a, b in pairwise(times)) < 0.3


def test_the_head_of_a_stream_does_not_wait_for_its_first_event(stack: Stack) -> None:
    with stack.wire() as wire:
        start = time.monotonic()
        wire.send(request(body=chat(stream=True, tokens=1, first_event_delay=0.5)))
        assert wire.head().status == 200
        assert time.monotonic() - start < 0.4
        assert len(list(wire.chunks())) == 4


def test_a_connection_goes_on_after_a_stream(stack: Stack) -> None:
    with stack.wire() as wire:
        for _ in range(3):
            answer = wire.send(request(body=chat(stream=True, tokens=2))).answer()
            assert answer.whole
            assert answer.events[-1] == b"data: [DONE]"
            assert answer.header("x-accel-buffering") == "no"


@pytest.mark.parametrize(
    ("fault", "whole_events"),
    [
        ({"cut_mid_event": 4}, 3),
        ({"close_after_events": 4}, 4),
        ({"reset_after_events": 4}, 4),
        ({"bad_chunk": 4}, 4),
    ],
)
def test_a_worker_that_dies_in_a_stream_leaves_whole_events_an_error_and_no_end(
    stack: Stack, fault: dict[str, Any], whole_events: int
) -> None:
    answer = stream(stack, tokens=8, delay=0.01, **fault)
    assert answer.status == 200
    assert not answer.whole
    *events, last = answer.events
    # A bad chunk may take along the events that came in the same read.
    assert len(events) == whole_events or ("bad_chunk" in fault and len(events) == whole_events - 1)
    assert all(json.loads(event.removeprefix(b"data: ")) for event in events)
    assert error_of(last)["code"] == "upstream_error"
    stack.wait_ready()


@pytest.mark.parametrize(
    "fault", [{"cut_mid_event": 4}, {"close_after_events": 4}, {"reset_after_events": 4}]
)
def test_an_http_1_0_client_gets_whole_events_and_the_error_too(stack: Stack, fault: dict[str, Any]) -> None:
    answer = stream(stack, version="1.0", tokens=8, delay=0.01, **fault)
    for event in answer.events:
        json.loads(event.removeprefix(b"data: "))
    assert error_of(answer.events[-1])["code"] == "upstream_error"
    stack.wait_ready()


def test_a_stream_that_breaks_before_its_first_event_goes_to_another_worker(stack: Stack) -> None:
    """The role event is the first: nothing had gone out when the first worker fell."""
    before = stack.count()
    answer = stream(stack, tokens=2, reset_before_head=True)
    assert answer.status == 502
    assert stack.count() == before + 2
    stack.wait_ready()


def test_a_clean_end_without_done_is_clean(stack: Stack) -> None:
    answer = stream(stack, tokens=2, done=False)
    assert answer.whole
    assert b"[DONE]" not in answer.body
    assert b"error" not in answer.body


def test_a_token_that_looks_like_the_end_is_none(scripted: Scripted) -> None:
    events = [b"data: 0\r\n\r\n\n\n", b"data: \r\n0\r\n\r\n\n\n", b"data: [DONE]\n\n"]
    whole = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"
    for piece in (1, 3, 10_000):
        answer = play_bytes(scripted, EVENTS_HEAD + whole, piece)
        assert answer.whole
        assert answer.body == b"".join(events)


def test_an_abort_in_a_stream_becomes_an_error(stack: Stack) -> None:
    answer = stream(stack, tokens=3, delay=0.02, abort=True)
    assert not answer.whole
    assert b'"abort"' not in answer.body
    assert error_of(answer.events[-1])["code"] == "upstream_error"
    # The last token and the abort come in one read.
    assert len(answer.events) in (4, 5)


@pytest.mark.parametrize("stream_it", [True, False])
def test_an_answer_without_framing_ends_with_its_connection(stack: Stack, stream_it: bool) -> None:
    answer = stack.ask(request(body=chat(stream=stream_it, tokens=3, no_body_framing=True)))
    assert answer.whole
    assert answer.header("transfer-encoding") == "chunked"
    assert b"2:say" in answer.body


@pytest.mark.parametrize("stream_it", [True, False])
@pytest.mark.parametrize("interim", [100, 103])
def test_interim_answers_are_for_the_proxy(stack: Stack, interim: int, stream_it: bool) -> None:
    answer = stack.ask(request(body=chat(stream=stream_it, interim=interim)))
    assert answer.status == 200
    assert b"7:this" in answer.body


@pytest.mark.parametrize(
    "fault",
    [
        {"garbage_head": True},
        {"cl_and_te": True},
        {"huge_head": 200_000},
        {"bad_chunk": True},
        {"interim": 101},
    ],
)
@pytest.mark.parametrize("stream_it", [True, False])
def test_an_answer_that_is_none_becomes_502(stack: Stack, fault: dict[str, Any], stream_it: bool) -> None:
    answer = stack.ask(request(body=chat(stream=stream_it, tokens=2, delay=0.01, **fault)))
    if answer.status == 200:  # it had begun already
        assert fault == {"bad_chunk": True}
        assert not answer.whole
        assert not stream_it or error_of(answer.events[-1])
    else:
        assert (answer.status, answer.error["type"]) == (502, "server_error")


@pytest.mark.parametrize("stream_it", [True, False])
def test_bytes_behind_an_answer_reach_nobody(stack: Stack, stream_it: bool) -> None:
    with stack.wire() as wire:
        for _ in range(4):
            wire.send(request(body=chat(stream=stream_it, extra_bytes_after_body=True)))
            answer = wire.answer()
            assert (answer.status, answer.whole) == (200, True)
            assert b"stale" not in answer.body
            assert wire.send(request("GET", "/v1/models")).answer().json["object"] == "list"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_may_have_no_body_has_none(stack: Stack, status: int) -> None:
    with stack.wire() as wire:
        for forbidden in (False, True):
            wire.send(request(body=chat(status=status, forbidden_body=forbidden)))
            assert wire.answer().status == status
            assert wire.goes_on()
            assert wire.send(request("GET", "/v1/models")).answer().json["object"] == "list"


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_the_workers_own_answers_pass_as_they_are(stack: Stack, status: int) -> None:
    before = stack.count()
    answer = stack.ask(request(body=chat(status=status, headers={"retry-after": "7", "x-own": "1"})))
    assert answer.status == status
    assert answer.json["error"]["message"] == "scripted"
    assert (answer.header("retry-after"), answer.header("x-own")) == ("7", "1")
    assert stack.count() == before + 1


def test_a_long_answer_that_breaks_is_cut_and_not_padded(stack: Stack) -> None:
    with stack.wire() as wire:
        answer = wire.send(request(body=chat(size=1_000_000, close_mid_body=500_000))).answer()
        assert answer.status == 200
        assert not answer.whole
        assert len(answer.body) == 500_000


def test_a_short_answer_that_breaks_is_tried_again(stack: Stack) -> None:
    before = stack.count()
    answer = stack.ask(request(body=chat(close_mid_body=50)))
    assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    assert stack.count() == before + 2
    stack.wait_ready()


# ------------------------------------------------------------------ bytes cut in odd places

EVENTS_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def play_bytes(scripted: Scripted, data: bytes, piece: int, end: bool = False) -> Answer:
    """Have a worker send `data` in pieces; with `end` it then hangs up."""
    stack, workers = scripted

    def play(sock: socket.socket, asked: bytes) -> bool:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), piece):
            sock.sendall(data[start : start + piece])
        return not end

    for worker in workers:
        worker.play = play
    return stack.ask(request(body=chat(stream=True)))


def test_a_stream_in_single_bytes_is_the_same_stream(scripted: Scripted) -> None:
    events = [b'data: {"a":"%d"}\n\n' % n for n in range(10)]
    data = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    answer = play_bytes(scripted, EVENTS_HEAD + data + b"0\r\n\r\n", 1)
    assert answer.whole
    assert answer.body == b"".join(events)


@pytest.mark.parametrize("end", range(0, 60, 6))
def test_a_stream_cut_anywhere_shows_whole_events_and_the_error(scripted: Scripted, end: int) -> None:
    events = [b'data: {"a":"%d"}\n\n' % n for n in range(3)]
    data = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    answer = play_bytes(scripted, EVENTS_HEAD + data[:end], 7, end=True)
    if answer.status == 502:  # nothing had gone out
        assert end < 20
        return
    assert not answer.whole
    *whole, last = answer.events
    assert whole == [event.strip() for event in events[: len(whole)]]
    assert error_of(last)["code"] == "upstream_error"


def test_events_with_crlf_line_ends_arrive_one_by_one(scripted: Scripted) -> None:
    stack, workers = scripted
    go_on = threading.Event()

    def play(sock: socket.socket, asked: bytes) -> bool:
        sock.sendall(EVENTS_HEAD + b"b\r\ndata: 1\r\n\r\n\r\n")
        go_on.wait(5)
        sock.sendall(b"0\r\n\r\n")
        return True

    for worker in workers:
        worker.play = play
    with stack.wire(timeout=1) as wire:
        try:
            wire.send(request(body=chat(stream=True)))
            assert wire.head().status == 200
            assert next(wire.chunks()) == b"data: 1\r\n\r\n"
        finally:
            go_on.set()


def test_an_interim_head_in_pieces_is_passed_over(scripted: Scripted) -> None:
    data = b"HTTP/1.1 103 Early\r\nlink: </a>\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    assert play_bytes(scripted, data, 5).body == b"ok"


# ------------------------------------------------------------------ slow readers


def memory(stack: Stack) -> int:
    """Bytes of all proxy processes."""
    return sum(psutil.Process(pid).memory_info().rss for pid in group_members(stack.proxy.pid))


def test_a_slow_reader_costs_bounded_memory_and_nobody_else(stack: Stack) -> None:
    """An answer of 60 MB to a client that does not read: the worker waits, not the proxy's memory."""
    quiet = memory(stack)
    with stack.wire(receive_buffer=4096) as slow:
        slow.send(request(body=chat(stream=True, tokens=600, size=100_000)))
        until(lambda: sum(stack.in_flight()) == 1, 5, "the stream has begun")
        for _ in range(20):
            start = time.monotonic()
            assert stack.ask(request(body=chat(tokens=1))).status == 200
            assert time.monotonic() - start < 1
        assert memory(stack) - quiet < 20_000_000
        assert sum(stack.in_flight()) == 1
    until(lambda: sum(stack.in_flight()) == 0, 5, "the stream has ended with its reader")


def test_a_slow_reader_gets_every_byte_at_last(stack: Stack) -> None:
    with stack.wire(receive_buffer=4096) as slow:
        slow.send(request(body=chat(stream=True, tokens=200, size=100_000)))
        until(lambda: sum(stack.in_flight()) == 1, 5, "the stream has begun")
        answer = slow.answer()
    assert answer.whole
    assert len(answer.events) == 203
    assert answer.events[-1] == b"data: [DONE]"
