"""Where an answer ends, and that only whole events go out, however the worker's bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.examples import examples
from vllm_stack.proxy.failures import Aborted, BadAnswer, UpstreamFailure
from vllm_stack.proxy.framing import Chunked, Dechunked, Framing, Length, UntilClose

MEBIBYTE = 1024 * 1024


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text: str = "token") -> bytes:
    return b'data: {"text":"%b"}\n\n' % text.encode()


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]


def feed_all(framing: Framing, pieces: Iterable[bytes]) -> bytes:
    """Feed as the relay does: what a failure leaves behind goes out before it is raised."""
    out = b""
    for piece in pieces:
        out += framing.feed(piece)
        if framing.failure is not None:
            raise framing.failure
    return out


def payload(framed: bytes) -> bytes:
    """Read chunks back, whole or not: the bytes that a client would see."""
    seen = Dechunked(events=False)
    return seen.feed(framed) if framed else b""


EVENTS = [
    event("one"),
    event("0\\r\\n\\r\\n"),
    event("0\r\n\r\n"),
    event("x" * 300),
    b": ping\n\n",
    b"data: [DONE]\n\n",
]
STREAM = b"".join(map(chunk, EVENTS)) + b"0\r\n\r\n"


@settings(max_examples=examples(200))
@given(at=st.lists(st.integers(1, len(STREAM)), max_size=15), events=st.booleans())
def test_a_chunked_answer_passes_byte_for_byte(at: list[int], events: bool) -> None:
    framing = Chunked(events)
    out = b""
    for piece in cut(STREAM, at):
        assert not framing.done
        out += framing.feed(piece)
    assert (out, framing.done, framing.clean) == (STREAM, True, True)


@settings(max_examples=examples(200))
@given(at=st.lists(st.integers(1, len(STREAM)), max_size=15), end=st.integers(1, len(STREAM) - 1))
def test_only_whole_events_go_out_wherever_the_worker_dies(at: list[int], end: int) -> None:
    framing = Chunked(events=True)
    out = b"".join(framing.feed(piece) for piece in cut(STREAM[:end], [a for a in at if a < end]))
    seen = payload(out + framing.event(event("error")))
    whole = b"".join(EVENTS)
    assert seen.endswith(event("error"))
    before = seen.removesuffix(event("error"))
    assert whole.startswith(before)
    assert before == b"" or before.endswith(b"\n\n")


def test_one_chunk_with_many_events_and_one_event_in_many_chunks() -> None:
    framing = Chunked(events=True)
    assert framing.feed(chunk(event() * 3)) == chunk(event() * 3)
    parts = [chunk(part) for part in cut(event("long"), [3, 9, 15])]
    outs = [framing.feed(part) for part in parts]
    assert outs == [b"", b"", b"", b"".join(parts)]


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\r\r", b"\n\n", b"\n\r\n"])
def test_an_event_goes_out_at_once_whichever_line_ends_it_uses(ending: bytes) -> None:
    """The WHATWG rules allow CRLF, LF and CR; sse-starlette writes CRLF."""
    framing = Chunked(events=True)
    sent = chunk(b"data: {}" + ending)
    assert framing.feed(sent) == sent


def test_a_stream_without_event_ends_is_not_held_for_ever() -> None:
    framing = Chunked(events=True)
    piece = chunk(b"data: x\n" * 8192)
    sent = received = 0
    while sent < 3 * MEBIBYTE:
        sent += len(piece)
        received += len(framing.feed(piece))
    assert sent - received < 2 * MEBIBYTE


def test_a_giant_event_passes_in_parts() -> None:
    framing = Chunked(events=True)
    data = chunk(b"x" * 3 * MEBIBYTE + b"\n\n") + b"0\r\n\r\n"
    out = b""
    largest = 0
    for start in range(0, len(data), 65536):
        out += framing.feed(data[start : start + 65536])
        largest = max(largest, start + 65536 - len(out))
    assert out == data
    assert framing.done
    assert largest < 2 * MEBIBYTE


def test_no_event_of_ours_is_put_inside_a_chunk() -> None:
    framing = Chunked(events=False)
    assert framing.feed(b"10\r\nabc") == b"10\r\nabc"
    assert framing.event(event()) == b""


def test_bytes_that_are_no_events_are_passed_on_at_once() -> None:
    framing = Chunked(events=False)
    assert framing.feed(b"10\r\nabc") == b"10\r\nabc"
    assert framing.feed(b"d") == b"d"
    assert framing.feed(b"0123456789ab\r") == b"0123456789ab"
    assert framing.feed(b"\n0\r\n") == b"\r\n"
    assert framing.feed(b"\r\n") == b"0\r\n\r\n"
    assert framing.done


BAD_CHUNKS = [
    b"g\r\nabc\r\n",
    b"+3\r\nabc\r\n",
    b"0x3\r\nabc\r\n",
    b"1_0\r\nabc\r\n",
    b" 3\r\nabc\r\n",
    b"-1\r\nabc\r\n",
    b"\r\nabc\r\n",
    b"F" * 17 + b"\r\nabc",
    b"3\r\nabcd\r\n",
    b"3\r\nabc\n0\r\n\r\n",
    b"3\nabc\r\n" + b"x" * 300,
    b"3;a\nb\r\nabc\r\n",
    b"x" * 300,
    b"0\r\nX: y\r\n" + b"y" * 20_000,
]


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("events", [True, False])
@pytest.mark.parametrize("bad", BAD_CHUNKS)
def test_a_bad_chunk_is_an_upstream_failure(bad: bytes, events: bool, step: int) -> None:
    framing = Chunked(events)
    assert framing.feed(chunk(event())) == chunk(event())
    with pytest.raises(BadAnswer):
        feed_all(framing, [bad[start : start + step] for start in range(0, len(bad), step)])
    assert not framing.done


@pytest.mark.parametrize("size", [b"3", b"03", b"3 ", b"3;a=b", b'3 ; a="b"'])
def test_a_chunk_size_may_have_zeros_and_extensions(size: bytes) -> None:
    framing = Chunked(events=False)
    data = size + b"\r\nabc\r\n0\r\nX-T: y\r\n\r\n"
    assert framing.feed(data) == data
    assert framing.done


@pytest.mark.parametrize(
    ("framing", "data"),
    [
        (Chunked(events=True), STREAM),
        (Chunked(events=False), STREAM),
        (Length(3), b"abc"),
        (Dechunked(events=True), STREAM),
    ],
    ids=["events", "chunked", "length", "dechunked"],
)
def test_bytes_behind_the_end_are_dropped_and_the_connection_with_them(framing: Framing, data: bytes) -> None:
    out = framing.feed(data + b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstale")
    assert out == (b"".join(EVENTS) if isinstance(framing, Dechunked) else data)
    assert framing.done
    assert not framing.clean


@pytest.mark.parametrize("framing", [Length(1), Chunked(events=True), Dechunked(events=True)])
def test_an_end_of_the_connection_before_the_end_of_the_answer_is_a_failure(framing: Framing) -> None:
    with pytest.raises(UpstreamFailure):
        framing.end()


def test_a_length_of_nothing_is_done_at_once() -> None:
    framing = Length(0)
    assert framing.done
    assert (framing.feed(b""), framing.clean) == (b"", True)
    assert (framing.feed(b"x"), framing.clean) == (b"", False)


def test_an_answer_that_ends_with_its_connection_gets_chunks_and_a_last_one() -> None:
    framing = UntilClose(chunk=True)
    assert (
        framing.feed(b"abc") + framing.feed(b"d") + framing.end()
        == chunk(b"abc") + chunk(b"d") + b"0\r\n\r\n"
    )
    assert framing.done
    assert not framing.clean


def test_an_answer_that_ends_with_its_connection_stays_bare_for_http_1_0() -> None:
    framing = UntilClose(chunk=False)
    assert framing.feed(b"abc") + framing.end() == b"abc"


@settings(max_examples=examples(100))
@given(at=st.lists(st.integers(1, len(STREAM)), max_size=10))
def test_dechunking_gives_the_payload(at: list[int]) -> None:
    framing = Dechunked(events=True)
    assert b"".join(map(framing.feed, cut(STREAM, at))) == b"".join(EVENTS)
    assert framing.done


@pytest.mark.parametrize("end", range(1, 80, 7))
def test_an_http_1_0_client_gets_whole_events_too(end: int) -> None:
    framing = Dechunked(events=True)
    out = b"".join(framing.feed(STREAM[i : i + 1]) for i in range(end))
    assert out == b"" or out.endswith(b"\n\n")


ABORTED = b'data: {"choices":[{"finish_reason":"abort"}]}\n\n'


@pytest.mark.parametrize("framing", [Chunked(events=True), Dechunked(events=True), UntilClose(chunk=True)])
def test_an_abort_that_no_client_asked_for_is_a_failure(framing: Framing) -> None:
    data = ABORTED if isinstance(framing, UntilClose) else chunk(ABORTED)
    with pytest.raises(Aborted):
        feed_all(framing, [data])


@pytest.mark.parametrize("at", range(1, len(chunk(ABORTED)), 9))
def test_an_abort_cut_in_two_is_one(at: int) -> None:
    framing = Chunked(events=True)
    with pytest.raises(Aborted):
        feed_all(framing, cut(chunk(ABORTED), [at]))


def test_a_model_that_speaks_of_aborts_is_no_failure() -> None:
    said = chunk(b'data: {"content":"\\"finish_reason\\":\\"abort\\""}\n\n')
    assert Chunked(events=True).feed(said) == said
