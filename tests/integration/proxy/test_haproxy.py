"""A real haproxy, as `vllm-stack haproxy` writes it, before the doors of two boxes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.proxy.harness import HOST, KEY, Answer, Stack, Wire, ask, chat, request
from tests.support.polling import until
from tests.support.ports import free_port, free_ports
from vllm_stack.address import TcpAddress
from vllm_stack.commands.haproxy import configuration, parse_doors

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed here")
NewStack = Callable[..., Stack]


class Pair:
    """Two stacks that name each other, and what is before them."""

    def __init__(self, new_stack: NewStack, home: Path, balance: bool = False) -> None:
        ports = [free_ports(3), free_ports(3)]
        doors = [TcpAddress(HOST, box[1]) for box in ports]
        keys = home / "upstream-keys"
        keys.write_text(KEY)
        keys.chmod(0o600)
        self.boxes = [
            new_stack(workers=1, ports=box, upstreams=(other,), upstream_key_file=keys, queue_timeout=2.0)
            for box, other in zip(ports, reversed(doors), strict=True)
        ]
        for box in self.boxes:
            box.start_proxy()
            box.workers[0].start()
        for box in self.boxes:
            box.wait_ready()
        self.port = free_port()
        self.config = home / "haproxy.cfg"
        urls = [f"http://{door}" for door in doors]
        self.config.write_text(configuration(parse_doors(urls), f"{HOST}:{self.port}", None, balance))
        self.boxes[0].ledger.start(["haproxy", "-db", "-f", self.config], log=home / "haproxy.log")
        until(lambda: self.ask().status == 200, 10, "haproxy serves")

    def ask(self, key: str | None = None) -> Answer:
        return ask(self.port, request(body=chat()) if key is None else request(body=chat(), key=key))

    def came_to(self, box: int, asks: int = 6) -> bool:
        """Ask, and tell whether all of it came to this door, whoever answered."""
        lines = self.lines()
        statuses = {self.ask().status for _ in range(asks)}
        until(lambda: sum(self.lines()) >= sum(lines) + asks, 5, "the requests are in the access logs")
        new = [after - before for before, after in zip(lines, self.lines(), strict=True)]
        return statuses == {200} and new[box] >= asks

    def lines(self) -> list[int]:
        return [counted(box) for box in self.boxes]


def counted(box: Stack) -> int:
    """Count the requests that this door has logged: those that the other one sent on are among them."""
    path = box.out / "logs/requests.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def pair(new_stack: NewStack, tmp_path: Path) -> Pair:
    return Pair(new_stack, tmp_path)


def test_a_stream_goes_through_event_by_event(pair: Pair) -> None:
    with Wire(pair.port) as wire:
        wire.send(request(body=chat(stream=True, tokens=4, delay=0.4)))
        assert wire.head().status == 200
        came = [time.monotonic() for chunk in wire.chunks() if chunk is not None]
    assert len(came) >= 4
    assert came[-1] - came[0] > 0.8, "what came first waited for what came last"


def test_the_doors_ask_for_keys_and_not_the_one_before_them(pair: Pair) -> None:
    answer = pair.ask(key="sk-of-nobody")
    assert answer.status == 401
    assert answer.json["error"]["code"] == "invalid_api_key"


def test_conversations_are_answered_by_the_workers_of_both_boxes(pair: Pair) -> None:
    texts = [f"conversation {number} " * 20 for number in range(30)]
    assert {ask(pair.port, request(body=chat(words=text))).status for text in texts} == {200}
    assert all(box.workers[0].count() for box in pair.boxes)


def test_another_door_takes_over_when_the_first_is_lost_and_gives_back(pair: Pair) -> None:
    first = pair.boxes[0]
    assert pair.came_to(0)
    first.proxy.kill()
    first.ledger.remember()
    assert {pair.ask().status for _ in range(6)} == {200}, "the first of them waits, and none is lost"
    first.start_proxy()
    first.wait_ready()
    until(lambda: pair.came_to(0), 15, "the first door gets requests again", every=0.5)
