"""A stream on its way, over real sockets: moved by the part in C, or in Python."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import gevent
import gevent.socket
import pytest

from vllm_stack.native import PUMP
from vllm_stack.proxy import relay as relay_module
from vllm_stack.proxy.failures import BadAnswer, Broken, ClientGone, Silent
from vllm_stack.proxy.framing import Chunked
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.relay import Relay
from vllm_stack.proxy.upstream import Upstream

EVENT = b"9\r\ndata: x\n\n\r\n"
HALF = b"8\r\ndata: y\n\r\n"
END = b"0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Stream:
    """A worker and a client of bytes, and the relay between them in a greenlet of its own."""

    def __init__(self, silence: float, room: int | None = None, first: bytes = b"") -> None:
        self.worker, source = gevent.socket.socketpair()
        sink, self.client = gevent.socket.socketpair()
        if room is not None:
            sink.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, room)
        self.upstream, self.peer = Upstream(source), Peer(sink, "127.0.0.1")
        self._silence = silence
        self._first = first
        self.running = gevent.spawn(self._run)
        self.client.settimeout(5)
        assert self.client.recv(len(HEAD)) == HEAD

    def _run(self) -> Exception | None:
        relay = Relay(self.peer, self.upstream, Chunked(events=True), self._silence)
        try:
            relay.run(self._first, HEAD)
        except Exception as error:
            return error
        return None

    def outcome(self, timeout: float = 5) -> Exception | None:
        return self.running.get(timeout=timeout)

    def take(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (more := self.client.recv(size - len(data))):
            data += more
        return data

    def close(self) -> None:
        self.running.kill()
        for channel in (self.upstream, self.peer):
            channel.close()
        self.worker.close()
        self.client.close()


@pytest.fixture(params=["in C", "in Python"], autouse=True)
def mover(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PUMP", PUMP if request.param == "in C" else None)


@pytest.fixture
def stream() -> Iterator[Stream]:
    stream = Stream(silence=60)
    yield stream
    stream.close()


def test_events_pass_as_they_come_until_the_end(stream: Stream) -> None:
    for _ in range(20):
        stream.worker.sendall(EVENT)
        assert stream.take(len(EVENT)) == EVENT
    stream.worker.sendall(EVENT + END)
    assert stream.take(len(EVENT + END)) == EVENT + END
    assert stream.outcome() is None


def test_an_event_in_pieces_passes_when_it_is_whole_and_the_next_ones_too(stream: Stream) -> None:
    for _ in range(3):
        stream.worker.sendall(EVENT[:6])
        with pytest.raises(TimeoutError), gevent.Timeout(0.05, TimeoutError()):
            stream.client.recv(1)
        stream.worker.sendall(EVENT[6:] + EVENT)
        assert stream.take(2 * len(EVENT)) == 2 * EVENT
    stream.worker.sendall(END)
    assert stream.outcome() is None


def test_an_event_in_two_chunks_keeps_its_order(stream: Stream) -> None:
    for _ in range(3):
        stream.worker.sendall(HALF)
        gevent.sleep(0.01)  # so that it is a read of its own
        stream.worker.sendall(EVENT)
        assert stream.take(len(HALF + EVENT)) == HALF + EVENT
    stream.worker.sendall(END)
    assert stream.outcome() is None


def test_an_event_that_began_with_the_head_keeps_its_order() -> None:
    stream = Stream(silence=60, first=HALF)
    stream.worker.sendall(EVENT)
    assert stream.take(len(HALF + EVENT)) == HALF + EVENT
    stream.worker.sendall(END)
    assert stream.outcome() is None
    stream.close()


def test_a_stream_may_last_longer_than_a_worker_may_be_silent() -> None:
    stream = Stream(silence=1.0)
    for _ in range(5):
        last = time.monotonic()
        stream.worker.sendall(EVENT)
        assert stream.take(len(EVENT)) == EVENT
        gevent.sleep(0.3)
    assert isinstance(stream.outcome(), Silent)
    assert 0.9 < time.monotonic() - last < 5
    stream.close()


def test_silence_after_half_an_event_counts_from_there() -> None:
    stream = Stream(silence=1.0)
    stream.worker.sendall(EVENT)
    gevent.sleep(0.4)
    last = time.monotonic()
    stream.worker.sendall(EVENT[:4])
    assert isinstance(stream.outcome(), Silent)
    assert 0.9 < time.monotonic() - last < 5
    stream.close()


def test_a_client_that_reads_slowly_gets_every_byte_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stalls: list[int] = []
    on_stall = Relay._on_stall

    def spy(relay: Relay, unsent: bytes) -> None:
        stalls.append(len(unsent))
        on_stall(relay, unsent)

    monkeypatch.setattr(Relay, "_on_stall", spy)
    stream = Stream(silence=60, room=4096)
    # 32 bytes each, so that a full read of the relay ends with an event.
    sent = b"".join(b"1a\r\ndata: %018d\n\n\r\n" % number for number in range(20_000)) + END
    writing = gevent.spawn(stream.worker.sendall, sent)
    got = b""
    while len(got) < len(sent):
        got += stream.take(min(3001, len(sent) - len(got)))
    assert got == sent
    assert stream.outcome() is None
    assert bool(stalls) is (relay_module.PUMP is not None)
    writing.get(timeout=5)
    stream.close()


def test_a_worker_that_hangs_up_in_the_middle_gave_a_bad_answer(stream: Stream) -> None:
    stream.worker.sendall(EVENT + EVENT[:3])
    assert stream.take(len(EVENT)) == EVENT
    stream.worker.close()
    assert isinstance(stream.outcome(), BadAnswer)


def test_a_connection_that_is_reset_is_broken(stream: Stream) -> None:
    stream.worker.sendall(EVENT)
    assert stream.take(len(EVENT)) == EVENT
    stream.upstream.raw.send(b"unread")  # which makes the worker's close a reset
    stream.worker.close()
    assert isinstance(stream.outcome(), Broken)


def test_a_relay_that_has_ended_waits_for_no_garbage_collector() -> None:
    gc.disable()
    try:
        stream = Stream(silence=60)
        stream.worker.sendall(EVENT + END)
        assert stream.outcome() is None
        left = [
            thing for thing in gc.get_objects() if isinstance(thing, Relay) and thing._peer is stream.peer
        ]
    finally:
        gc.enable()
    assert left == []
    stream.close()


def test_a_client_that_goes_ends_it(stream: Stream) -> None:
    stream.worker.sendall(EVENT)
    assert stream.take(len(EVENT)) == EVENT
    stream.client.close()
    stream.worker.sendall(EVENT)
    stream.worker.sendall(EVENT)
    assert isinstance(stream.outcome(), ClientGone)
