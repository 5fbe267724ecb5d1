"""What vLLM says on the wire: made once, sent often, and known to those who check it."""

from __future__ import annotations

import json
from functools import cache

MODEL = "fake"
DEFAULT_EVENTS = 100
_CREATED = 1_780_000_000
_ID = "chatcmpl-0f6d7c3e9a5b4d1c8e2f7a6b5c4d3e2f"
_SERVER = b"date: Sat, 01 Aug 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"


def sse_event(index: int, last: bool) -> bytes:
    """Give event `index` of a streamed answer, as vLLM spells it."""
    event = {
        "id": _ID,
        "object": "chat.completion.chunk",
        "created": _CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "delta": {"content": f" word{index}"},
                "logprobs": None,
                "finish_reason": "stop" if last else None,
                "token_ids": None,
            }
        ],
    }
    return b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"


@cache
def sse_body(events: int) -> bytes:
    """Give the whole body of a streamed answer of `events` events, without the chunk framing."""
    said = [sse_event(index, index == events - 1) for index in range(events)]
    return b"".join([*said, b"data: [DONE]\n\n"])


def answer_text(events: int) -> str:
    """Give the text that a streamed answer of `events` events amounts to."""
    return "".join(f" word{index}" for index in range(events))


COMPLETION_TEXT = " ".join(["An answer of some length, as a chat model would give it."] * 4)


def completion() -> bytes:
    """Give the body of an answer that is not streamed: about 600 bytes."""
    answer = {
        "id": _ID,
        "object": "chat.completion",
        "created": _CREATED,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": COMPLETION_TEXT, "tool_calls": []},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 250, "total_tokens": 290, "completion_tokens": 40},
    }
    return json.dumps(answer, separators=(",", ":")).encode()


def whole(body: bytes, status: bytes = b"200 OK") -> bytes:
    """Give a whole answer with its length."""
    length = str(len(body)).encode()
    head = b"HTTP/1.1 " + status + b"\r\n" + _SERVER + b"content-length: " + length
    return head + b"\r\ncontent-type: application/json\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    """Give one chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@cache
def chunks(events: int) -> tuple[bytes, ...]:
    """Give the events of a streamed answer, each as the chunk that it goes out in."""
    return tuple(chunk(sse_event(index, index == events - 1)) for index in range(events))


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    + _SERVER
    + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
COMPLETION = whole(completion())
NOT_FOUND = whole(b'{"detail":"Not Found"}', b"404 Not Found")

_MODEL_CARD = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "vllm", "root": MODEL}
# What routers ask before they send a worker anything.
_INFO = {
    "model_path": MODEL,
    "served_model_name": MODEL,
    "tokenizer_path": "",
    "is_generation": True,
    "max_model_len": 32768,
    "version": "0.32.0",
    "dp_size": 1,
    "tp_size": 1,
    "status": "ready",
}
GET = {
    b"/health": whole(b""),
    b"/v1/models": whole(json.dumps({"object": "list", "data": [_MODEL_CARD]}).encode()),
    **dict.fromkeys(
        (
            b"/get_model_info",
            b"/model_info",
            b"/get_server_info",
            b"/server_info",
            b"/health_generate",
            b"/version",
            b"/ping",
            b"/v1/loads",
            b"/get_load",
        ),
        whole(json.dumps(_INFO).encode()),
    ),
}


def dechunk(data: bytes, start: int) -> tuple[bytes, int] | None:
    """Give the body of a chunked message and where it ends; None while it is not whole."""
    parts: list[bytes] = []
    while True:
        line = data.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(data[start:line].partition(b";")[0], 16)
        stop = line + 2 + size
        if len(data) < stop + 2:
            return None
        if size == 0:
            return b"".join(parts), stop + 2
        parts.append(data[line + 2 : stop])
        start = stop + 2
