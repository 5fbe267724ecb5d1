"""The part in C does what `framing.Chunked` would do, or leaves it to it, whatever the worker sends."""

from __future__ import annotations

import errno
import gc
import os
import socket
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from vllm_stack.native import PUMP, SWITCH
from vllm_stack.proxy.framing import ABORT, Chunked

assert PUMP is not None, (
    "no part in C: install a C compiler and Python's headers, then .venv/bin/pip install -e ."
)


def chunk(data: bytes, line: bytes | None = None) -> bytes:
    return b"%b\r\n%b\r\n" % (line or b"%x" % len(data), data)


EVENT = chunk(b'data: {"text":"token"}\n\n')


class Passage:
    """A pump between two pairs of sockets, and what it hands over."""

    def __init__(self, room: int | None = None) -> None:
        self.worker, self.source = socket.socketpair()
        self.sink, self.client = socket.socketpair()
        if room is not None:
            self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)
        for sock in (self.source, self.sink, self.client):
            sock.setblocking(False)
        self.handed: list[tuple[bytes, int]] = []
        self.stalled: list[bytes] = []
        assert PUMP is not None
        self.pump = PUMP(
            self.source.fileno(), self.sink.fileno(), ABORT, self._otherwise, self.stalled.append
        )
        self.pump.straight = True

    def _otherwise(self, data: bytes, number: int) -> None:
        self.handed.append((data, number))

    def give(self, data: bytes) -> None:
        self.worker.sendall(data)
        self.pump()

    def got(self) -> bytes:
        """Take all that the client has received."""
        got = b""
        try:
            while data := self.client.recv(1 << 20):
                got += data
        except BlockingIOError:
            pass
        return got

    def close(self) -> None:
        for sock in (self.worker, self.source, self.sink, self.client):
            sock.close()


@pytest.fixture
def passage() -> Iterator[Passage]:
    passage = Passage()
    yield passage
    passage.close()


@pytest.mark.parametrize(
    "data",
    [
        EVENT,
        EVENT * 7,
        chunk(b"data: x\n\ndata: y\n\n"),
        chunk(b"data: x") + chunk(b"\n\n"),
        chunk(b"data: 0\r\n\r\n\n\n"),
        chunk(b"x" * 60_000 + b"\n\n"),
        chunk(b"data: AbCdEf 012\n\n", b"0012"),
        chunk(b"x" * 169 + b"\n\n", b"aB"),
    ],
)
def test_whole_events_in_whole_chunks_pass_without_python(passage: Passage, data: bytes) -> None:
    passage.give(data)
    assert passage.got() == data
    assert (passage.handed, passage.stalled) == ([], [])


@pytest.mark.parametrize(
    "data",
    [
        b"0\r\n\r\n",
        EVENT + b"0\r\n\r\n",
        b"0\r\n\r\n" + EVENT,
        b"\r\n\r\n" + EVENT,
        EVENT[:-2] + b"--" + EVENT,
        EVENT[:-1],
        EVENT[1:],
        EVENT + b"5",
        b"\n\n\r\n",
        b"\r\n\n\n\r\n",
        chunk(b"data: half\n"),
        chunk(b"data: x\r\n\r\n"),
        chunk(b"data: x\n\n", b"+9"),
        chunk(b"data: x\n\n", b"0x9"),
        chunk(b"data: x\n\n", b"9 "),
        chunk(b"data: x\n\n", b"9;name=value"),
        chunk(b"data: x\n\n", b"00000009"),
        chunk(b"data: x\n\n", b"ffffffffffffffff"),
        chunk(b"data: x\n\n", b"8"),
        chunk(b"data: x\n\n", b"a"),
        chunk(b"data: x\n\n").replace(b"\r\n", b"\n"),
        chunk(b"data: {" + ABORT + b"}\n\n"),
        EVENT + chunk(b"data: {" + ABORT + b"}\n\n"),
    ],
)
def test_everything_else_is_left_to_python_byte_for_byte(passage: Passage, data: bytes) -> None:
    passage.give(data)
    assert passage.got() == b""
    assert passage.handed == [(data, 0)]


def test_nothing_passes_while_a_chunk_or_an_event_is_begun(passage: Passage) -> None:
    passage.pump.straight = False
    passage.give(EVENT)
    assert passage.got() == b""
    assert passage.handed == [(EVENT, 0)]


def test_a_socket_with_nothing_to_read_is_no_end(passage: Passage) -> None:
    passage.pump()
    assert (passage.handed, passage.stalled, passage.got()) == ([], [], b"")


def test_the_workers_end_and_its_reset_are_told_apart() -> None:
    clean = Passage()
    clean.worker.close()
    clean.pump()
    assert clean.handed == [(b"", 0)]
    clean.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        worker = socket.create_connection(listener.getsockname())
        source, _ = listener.accept()
    handed: list[tuple[bytes, int]] = []
    assert PUMP is not None
    pump = PUMP(source.fileno(), -1, ABORT, lambda data, number: handed.append((data, number)), print)
    worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    worker.close()
    pump()
    source.close()
    assert handed == [(b"", errno.ECONNRESET)]


def test_a_client_with_little_room_gets_every_byte_once() -> None:
    passage = Passage(room=4096)
    data = chunk(bytes(range(33, 127)) * 600 + b"\n\n")
    passage.give(data)
    (rest,) = passage.stalled
    assert rest
    assert passage.got() + rest == data
    passage.close()


def test_a_client_that_is_gone_is_no_signal_and_no_error(passage: Passage) -> None:
    passage.client.close()
    passage.give(EVENT)
    assert passage.stalled == [EVENT]


def test_only_what_was_moved_counts_as_life(passage: Passage) -> None:
    begun = passage.pump.moved
    assert abs(begun - time.monotonic()) < 10
    passage.give(EVENT[:5])
    assert passage.pump.moved == begun
    passage.handed.clear()
    passage.give(EVENT)
    assert begun < passage.pump.moved <= time.monotonic()


def test_an_error_in_what_it_calls_is_raised(passage: Passage) -> None:
    def fail(data: bytes, number: int) -> None:
        raise RuntimeError(data)

    assert PUMP is not None
    pump = PUMP(passage.source.fileno(), passage.sink.fileno(), ABORT, fail, fail)
    passage.worker.sendall(b"odd")
    with pytest.raises(RuntimeError, match="odd"):
        pump()


@pytest.mark.parametrize(
    "words", [(), (1, 2, "text", print, print), (1, 2, ABORT, print), ("1", 2, ABORT, 3, 4)]
)
def test_what_it_is_made_of_is_checked(words: tuple[Any, ...]) -> None:
    assert PUMP is not None
    with pytest.raises(TypeError):
        PUMP(*words)


def test_it_does_not_keep_its_relay_alive() -> None:
    class Relay:
        def __init__(self) -> None:
            assert PUMP is not None
            self.pump = PUMP(-1, -1, ABORT, self.otherwise, self.stalled)

        def otherwise(self, data: bytes, number: int) -> None: ...

        def stalled(self, data: bytes) -> None: ...

    relay = weakref.ref(Relay())
    gc.collect()
    assert relay() is None


def test_making_and_calling_it_leaks_nothing(passage: Passage) -> None:
    def use() -> None:
        assert PUMP is not None
        for _ in range(300):
            pump = PUMP(passage.source.fileno(), passage.sink.fileno(), ABORT, passage._otherwise, print)
            passage.worker.sendall(EVENT[:-1])
            pump()
            passage.handed.clear()

    use()
    gc.collect()
    before = sys.getallocatedblocks()
    use()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100


def test_the_environment_leaves_it_out() -> None:
    look = "from vllm_stack.native import PUMP; print(PUMP is None)"
    for value, said in (("0", "True"), ("1", "False")):
        done = subprocess.run(
            [sys.executable, "-c", look],
            env={**os.environ, SWITCH: value},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.strip() == said, done.stderr


# ------------------------------------------------------------------ the same as Python alone


PAYLOADS = st.sampled_from(
    [
        b'data: {"text":"token"}\n\n',
        b"data: 0\r\n\r\n\n\n",
        b": ping\n\n",
        b"data: half of one",
        b"\n",
        b"\n\n",
        b"data: crlf\r\n\r\n",
        b"data: [DONE]\n\n",
        b'data: {"choices":[{' + ABORT + b"}]}\n\n",
    ]
)
CHUNKS = st.one_of(
    PAYLOADS.map(chunk),
    st.binary(min_size=1, max_size=20).map(chunk),
    st.builds(chunk, PAYLOADS, st.sampled_from([b"+5", b"7", b"0x8", b"9;a=b", b"00000000000000001f"])),
    st.binary(min_size=1, max_size=8),
)


@settings(max_examples=examples(400), deadline=None)
@given(
    chunks=st.lists(CHUNKS, min_size=1, max_size=8),
    end=st.sampled_from([b"", b"0\r\n\r\n", b"0\r\nx: y\r\n\r\n", b"0\r\n\r\nmore"]),
    cuts=st.lists(st.integers(1, 200), max_size=3),
    whole=st.booleans(),
    events=st.booleans(),
)
def test_the_client_gets_what_it_would_get_from_python_alone_at_every_step(
    chunks: list[bytes], end: bytes, cuts: list[int], whole: bool, events: bool
) -> None:
    data = b"".join(chunks) + end
    if whole:  # as a worker writes: every chunk is a read of its own
        cuts = [*cuts, *accumulate(map(len, chunks))]
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    alone, behind = Chunked(events), Chunked(events)
    passage = Passage()
    try:
        for start, stop in pairwise(edges):
            piece = data[start:stop]
            passage.pump.straight = behind.straight
            passage.give(piece)
            got = passage.got()
            assert (not passage.handed) or got == b""
            for left, _ in passage.handed:
                got += behind.feed(left)
            passage.handed.clear()
            assert got == alone.feed(piece)
            assert (behind.done, behind.clean, type(behind.failure)) == (
                alone.done,
                alone.clean,
                type(alone.failure),
            )
            assert vars(behind).keys() == vars(alone).keys()
            assert {**vars(behind), "failure": None} == {**vars(alone), "failure": None}
            if alone.done or alone.failure is not None:
                return
    finally:
        passage.close()
