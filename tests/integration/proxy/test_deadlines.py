"""Clients that are slow on purpose: the deadlines, shortened, around our own connection loop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest
from gevent import select, socket

from tests.integration.proxy.harness import KEY, Stack
from tests.support.polling import throughout, until
from vllm_stack.proxy import client as client_module
from vllm_stack.proxy import peer as peer_module
from vllm_stack.proxy.client import Client
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.scoreboard import Scoreboard
from vllm_stack.proxy.settings import read_settings

HEAD = (
    b"POST /v1/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
    + KEY.encode()
    + b"\r\ncontent-length: 20\r\n\r\n"
)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    settings = read_settings(Stack(tmp_path).out / "proxy.json")
    board = Scoreboard(1, len(settings.servers))
    return Door(settings, board, board.row(board.take_row()))


@pytest.fixture
def wire(door: Door, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The client's end of a connection whose other end is served, with deadlines of 0.3 seconds."""
    for name in ("KEEP_ALIVE", "HEAD_DEADLINE", "BODY_GRACE"):
        monkeypatch.setattr(client_module, name, 0.3)
    monkeypatch.setattr(client_module, "BODY_RATE", 20.0)
    ours, theirs = socket.socketpair()
    serving = gevent.spawn(Client(door, theirs, "127.0.0.1").serve)
    ours.settimeout(5)
    yield ours
    ours.close()
    serving.join(5)
    assert serving.successful()
    assert door.peers == set()


def read_to_end(wire: Any) -> tuple[bytes, float]:
    start = time.monotonic()
    data = b""
    while more := wire.recv(65536):
        data += more
    return data, time.monotonic() - start


@pytest.mark.parametrize(
    "sent", [b"G", HEAD[:-2], b"\r\n"], ids=["a byte", "all but the end", "an empty line"]
)
def test_a_head_that_does_not_come_is_408(wire: Any, sent: bytes) -> None:
    wire.sendall(sent)
    answer, took = read_to_end(wire)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "request_timeout"' in answer
    assert 0.2 < took < 1.5


def test_a_head_in_trickles_does_not_move_its_deadline(wire: Any) -> None:
    start = time.monotonic()
    for byte in HEAD:
        wire.sendall(bytes([byte]))
        if select.select([wire], [], [], 0.03)[0]:
            break
    assert time.monotonic() - start < 1.5
    assert read_to_end(wire)[0].startswith(b"HTTP/1.1 408 ")


def test_a_body_that_does_not_come_is_408_and_no_worker_is_leased(wire: Any, door: Door) -> None:
    wire.sendall(HEAD + b"half")
    throughout(lambda: list(door.board.loads()) == [0, 0], 0.1, "nobody is asked", pause=gevent.sleep)
    answer, took = read_to_end(wire)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert took < 1.5


def test_a_body_that_comes_fast_enough_may_take_longer(wire: Any) -> None:
    """Every 20 bytes give a second more: what comes earns its time."""
    wire.sendall(HEAD)
    for _ in range(20):
        wire.sendall(b"x")
        gevent.sleep(0.03)
    answer = wire.recv(65536)
    assert answer.startswith(b"HTTP/1.1 503 ")  # whole at last, and no worker is ready


def test_an_idle_connection_ends_without_a_word(wire: Any) -> None:
    answer, took = read_to_end(wire)
    assert answer == b""
    assert 0.2 < took < 1.5


def test_who_has_just_come_to_a_closing_door_is_answered(wire: Any, door: Door) -> None:
    (peer,) = door.peers
    until(lambda: peer.idle, 5, "its request is waited for", pause=gevent.sleep)
    door.close()
    wire.sendall(HEAD + b"x" * 20)
    assert read_to_end(wire)[0].startswith(b"HTTP/1.1 503 ")


def test_who_has_just_come_to_a_closing_door_and_says_nothing_is_let_go_soon(
    wire: Any, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "KEEP_ALIVE", 30)
    monkeypatch.setattr(peer_module, "FIRST_REQUEST", 0.2)
    (peer,) = door.peers
    until(lambda: peer.idle, 5, "its request is waited for", pause=gevent.sleep)
    door.close()
    answer, took = read_to_end(wire)
    assert answer == b""
    assert 0.1 < took < 1.5


def test_a_closing_door_ends_an_idle_connection_now(wire: Any, door: Door) -> None:
    wire.sendall(HEAD + b"x" * 20)
    assert wire.recv(65536).startswith(b"HTTP/1.1 503 ")
    door.close()
    answer, took = read_to_end(wire)
    assert answer == b""
    assert took < 0.2
