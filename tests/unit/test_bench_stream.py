"""What the stream of one answer tells of itself and its times."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vllm_stack.bench.caller import _refused
from vllm_stack.bench.sample import Objective, Sample
from vllm_stack.bench.stream import TimedStream
from vllm_stack.bench.way import Server


def event(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {} if text is None else {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
USAGE = (
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def read(*pieces: tuple[float, bytes]) -> TimedStream:
    stream = TimedStream()
    for now, piece in pieces:
        stream.feed(piece, now)
    return stream


def test_times_are_those_of_the_first_event_and_of_the_events_with_text() -> None:
    """The role comes with the first token, and a token without text is in the gap of the next."""
    stream = read(
        (1.0, ROLE),
        (1.0, event("a")),
        (1.5, event("")),
        (1.75, event("b")),
        (2.0, event("c", "length") + USAGE + DONE),
    )
    assert (stream.first, stream.last, stream.gaps) == (1.0, 2.0, [0.75, 0.25])
    assert stream.fault() is None
    assert stream.usage is not None
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (7, 3)


@pytest.mark.parametrize(
    "data",
    [
        {"choices": [{"text": "a"}]},
        {"choices": [{"delta": {"reasoning": "a"}}]},
        {"choices": [{"delta": {"reasoning_content": "a"}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0}]}}]},
    ],
)
def test_text_is_text_by_whatever_name(data: dict[str, Any]) -> None:
    one = b"data: " + json.dumps(data).encode() + b"\n\n"
    assert read((1.0, one), (3.0, one)).gaps == [2.0]


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (ROLE + event("a"), "no [DONE]"),
        (b"", "no [DONE]"),
        (DONE, "empty"),
        (event("a", "abort") + DONE, "aborted"),
        (event("a") + b'data: {"error": {"message": "died", "code": 500}}\n\n' + DONE, "error in the stream"),
        (event("a") + b'data: {"error": "died"}\n\n' + DONE, "error in the stream"),
        (event("a") + b"data: what?\n\n" + DONE, "error in the stream"),
        (b'{"choices": []}', "no [DONE]"),
    ],
)
def test_an_answer_that_is_not_whole_is_no_answer(stream: bytes, kind: str) -> None:
    for size in (1, 7, len(stream) or 1):
        pieces = [(1.0, stream[at : at + size]) for at in range(0, len(stream), size)]
        fault = read(*pieces).fault()
        assert fault is not None
        assert fault[0] == kind


BROKEN = ("cut off", "in the middle")


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (event("a"), BROKEN),
        (event("a") + DONE, None),
        (event("a") + b'data: {"error": "died"}\n\n', ("error in the stream", "died")),
    ],
)
def test_a_broken_connection_is_the_reason_unless_the_stream_told_another(
    stream: bytes, fault: tuple[str, str] | None
) -> None:
    assert read((1.0, stream)).fault(BROKEN) == fault


def test_the_time_of_a_token_goes_by_the_servers_count() -> None:
    """A gap may be of several tokens, and a token may have no text."""
    assert Sample("s", 1.0, 3.0, (1.0, 1.0), output_tokens=5).per_token == 0.5
    assert Sample("s", 1.0, 3.0, (1.0, 1.0)).per_token == 1.0
    assert Sample("s", 1.0, 1.0, (), output_tokens=1).per_token is None


@pytest.mark.parametrize(
    ("objective", "met"),
    [
        (Objective(), True),
        (Objective(first=1.0), True),
        (Objective(first=0.9), False),
        (Objective(per_token=0.5), True),
        (Objective(per_token=0.4), False),
        (Objective(first=1.0, per_token=0.4), False),
    ],
)
def test_a_good_request_keeps_to_all_that_is_asked(objective: Objective, met: bool) -> None:
    whole = Sample("s", 1.0, 3.0, (1.0, 1.0), output_tokens=5)
    assert objective.is_met(whole) is met
    assert not objective.is_met(Sample("s", 0.1, 0.1, error="cut off"))
    assert Objective(per_token=0.1).is_met(Sample("s", 1.0, 1.0, output_tokens=1))


DEEP = b'{"x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"


def test_an_answer_that_is_nested_without_end_is_a_failure_like_another() -> None:
    fault = read((1.0, b"data: " + DEEP + b"\n\n" + DONE)).fault()
    assert fault is not None
    assert fault[0] == "error in the stream"


@pytest.mark.parametrize("body", [DEEP, b'{"error": "\xff"}', b'{"error": {"code": "\xff"}}', b"\xff"])
def test_a_refusal_that_cannot_be_read_is_named_by_its_status(body: bytes) -> None:
    sample = _refused(Server("worker-0", "http://x"), 500, body)
    assert (sample.error, sample.detail) == ("500", "")
