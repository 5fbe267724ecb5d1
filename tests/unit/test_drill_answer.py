"""What an answer of the door tells of itself: whole, cut with word of it, broken, or cut silently."""

from __future__ import annotations

import json

import pytest

from vllm_stack.drill.answer import Ending, EventReader, StreamReader, judge_answer
from vllm_stack.openai import error_body, error_event

TOKEN = b'data: {"choices": [{"delta": {"content": "one"}, "finish_reason": null}]}\n\n'
ABORTED = b'data: {"choices": [{"delta": {}, "finish_reason": "abort"}]}\n\n'
DONE = b"data: [DONE]\n\n"
ERROR = error_event("The connection to the worker broke", "server_error", "upstream_error")
BROKEN = "the connection ended in the middle of the answer"


@pytest.mark.parametrize(
    ("stream", "broken", "ending"),
    [
        (TOKEN + DONE, None, Ending.WHOLE),
        (TOKEN + DONE, BROKEN, Ending.WHOLE),
        (TOKEN + ERROR, BROKEN, Ending.CUT),
        (TOKEN + ERROR, None, Ending.CUT),
        (TOKEN + ERROR + DONE, None, Ending.CUT),
        (TOKEN, BROKEN, Ending.BROKEN),
        (b"", BROKEN, Ending.BROKEN),
        (TOKEN, None, Ending.SILENT),
        (b"", None, Ending.SILENT),
        (TOKEN + ABORTED + DONE, None, Ending.SILENT),
        (TOKEN + ABORTED + ERROR, BROKEN, Ending.CUT),
        (TOKEN + DONE.rstrip(), None, Ending.SILENT),
        (TOKEN + b": [DONE]\n\n", None, Ending.SILENT),
    ],
)
def test_a_stream_says_how_it_ended_in_whatever_pieces_it_came(
    stream: bytes, broken: str | None, ending: Ending
) -> None:
    for size in (1, 7, len(stream) or 1):
        reader = StreamReader()
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
        assert reader.ending(broken)[0] is ending, size


def test_events_are_taken_apart_as_the_standard_says() -> None:
    """With either end of line, a comment, a field of another name, and data of two lines."""
    reader = EventReader()
    assert list(reader.feed(b": hello\r\nevent: x\r\ndata: a\r\ndata:b\r\n\r\ndata")) == ["a\nb"]
    assert list(reader.feed(b": [DONE]\n")) == []
    assert list(reader.feed(b"\n\n")) == ["[DONE]"]


def completion(finish: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": "one"}, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "ending", "word"),
    [
        (200, completion("length"), Ending.WHOLE, ""),
        (200, completion("abort"), Ending.SILENT, "abort"),
        (200, b"{}", Ending.FAILED, "no completion"),
        (200, b"[]", Ending.FAILED, "no completion"),
        (
            503,
            error_body("No worker is ready", "server_error", "no_ready_worker"),
            Ending.FAILED,
            "503 No worker",
        ),
        (500, b"Internal Server Error", Ending.FAILED, "500"),
        (401, b'{"error":"Unauthorized"}', Ending.FAILED, "401 Unauthorized"),
    ],
)
def test_an_answer_in_one_piece_is_judged_by_its_status_and_what_it_says(
    status: int, body: bytes, ending: Ending, word: str
) -> None:
    judged, detail = judge_answer(status, body)
    assert judged is ending
    assert word in detail
