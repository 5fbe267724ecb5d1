"""The network breaks at every byte of a worker's answer: no client takes half of it for the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import pytest

from tests.integration.proxy.harness import Answer, Stack, chat, request
from tests.support.fault_shim import SOUND, Fault, FaultShim
from tests.support.polling import until
from tests.support.ports import free_ports

PLAIN = request(body=chat(tokens=1))
STREAM = request(body=chat(stream=True, tokens=2))
BOTH = pytest.mark.parametrize("data", [PLAIN, STREAM], ids=["plain", "stream"])
# A worker whose connection broke is looked at again after half a second: so many, that some are always well.
WORKERS = 32


class Broken:
    """A stack that takes one worker for many, each behind a shim of its own."""

    def __init__(self, stack: Stack, ports: Sequence[int]) -> None:
        self.stack = stack
        self.worker = stack.workers[0]
        (self.worker.port,) = free_ports(1)
        self.shims = [FaultShim(port, self.worker.port) for port in ports]

    def set(self, fault: Fault, every: int = 1) -> None:
        """Have this happen in every so many of the shims, and nothing in the others."""
        for number, shim in enumerate(self.shims):
            shim.set(SOUND if number % every else fault)

    def ask(self, data: bytes) -> Answer:
        return self.stack.ask(data)

    @property
    def passed(self) -> int:
        return sum(shim.passed for shim in self.shims)

    def length_of(self, data: bytes) -> int:
        """Give the length of a worker's answer, the head included."""
        self.set(SOUND)
        assert is_whole(self.ask(data), data)
        return self.passed

    def check_sound(self, data: bytes) -> None:
        """Nothing is left of the faults: an answer comes whole, and nothing is in flight."""
        self.set(SOUND)
        assert is_whole(self.ask(data), data)
        until(lambda: not any(self.stack.in_flight()), 5, "nothing is in flight")
        assert self.worker.state()["malformed"] == []


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    options = {"response_timeout": 1.0, "queue_timeout": 5.0, "policy": "round-robin"}
    with Stack(tmp_path_factory.mktemp("faults"), workers=WORKERS, **options) as stack:
        broken = Broken(stack, [worker.port for worker in stack.workers])
        stack.start_proxy()
        broken.worker.start()
        stack.wait_ready()
        yield broken
        for shim in broken.shims:
            shim.close()


def is_whole(answer: Answer, data: bytes) -> bool:
    """Tell whether a client takes it for a good answer, from the first byte to the last."""
    ended = answer.events[-1:] == [b"data: [DONE]"] if data is STREAM else b"usage" in answer.body
    return answer.status == 200 and answer.whole and ended


def check_said(answer: Answer, data: bytes, at: int) -> None:
    """An answer that broke after `at` bytes says so, in the one way that its framing leaves."""
    if answer.status != 200:
        assert answer.status == 502, at
        assert answer.error["code"] == "upstream_error"
    elif data is STREAM:
        assert not answer.whole, at
        assert b'data: {"error"' in answer.events[-1], at
        assert all(event.startswith((b"data: {", b"data: [DONE]")) for event in answer.events), at
    else:
        assert not answer.whole, at


@pytest.mark.parametrize("end", ["close", "reset"])
@BOTH
def test_an_answer_cut_at_any_byte_is_never_taken_for_whole(
    broken: Broken, data: bytes, end: Literal["close", "reset"]
) -> None:
    length = broken.length_of(data)
    assert length > 200
    for at in range(length):
        broken.set(Fault(end, at))
        check_said(broken.ask(data), data, at)
    broken.check_sound(data)


@pytest.mark.parametrize("end", ["close", "reset"])
@BOTH
def test_what_breaks_before_anything_went_out_is_made_good_by_another_worker(
    broken: Broken, data: bytes, end: Literal["close", "reset"]
) -> None:
    length = broken.length_of(data)
    before = broken.stack.retries()
    for at in range(0, length, 7):
        # They are asked in turns: of two requests in a row one meets the fault.
        broken.set(Fault(end, at), every=2)
        for answer in (broken.ask(data), broken.ask(data)):
            if not is_whole(answer, data):
                assert answer.status == 200, "what was not passed on is asked for again"
                check_said(answer, data, at)
    assert broken.stack.retries() - before >= 3
    broken.check_sound(data)


@BOTH
def test_a_worker_that_goes_silent_at_any_point_is_given_up_after_the_response_timeout(
    broken: Broken, data: bytes
) -> None:
    length = broken.length_of(data)
    for at in (0, length // 2, length - 1):
        broken.set(Fault("hang", at))
        answer = broken.ask(data)
        assert not is_whole(answer, data), at
        assert answer.status in (200, 504), at
    broken.check_sound(data)


@pytest.mark.parametrize(
    "fault",
    [Fault(size=1), Fault(size=3, pause=0.002), Fault(pause=0.1)],
    ids=["byte by byte", "in slow slices", "late"],
)
@BOTH
def test_what_comes_slowly_or_in_pieces_comes_whole(broken: Broken, data: bytes, fault: Fault) -> None:
    broken.set(fault)
    assert is_whole(broken.ask(data), data)
    broken.check_sound(data)
