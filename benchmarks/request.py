"""The chat request that every measurement sends: about 1.2 kB, as a short conversation has."""

from __future__ import annotations

import json

from benchmarks.dialect import MODEL

PATH = "/v1/chat/completions"
KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"

_SYSTEM = (
    "You are a helpful assistant of a company that makes garden tools. Answer briefly and to the point, "
    "in the language of the question. Do not invent products; where you do not know, say so and name "
    "the page of the catalogue where the customer may look. Prices are in euros and include tax. "
)
_USER = (
    "I bought a hedge trimmer last spring and its blade has become blunt after I cut a rather old hedge "
    "of hornbeam. Can the blade be sharpened at home, and with what? And what does a new one cost? "
)


def chat_body(events: int | None = None) -> bytes:
    """Give the JSON of a chat request; with `events` the answer is streamed, in that many events."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": _USER * 2},
            {"role": "assistant", "content": "Yes, with a flat file. " * 12},
            {"role": "user", "content": "And how often should that be done?"},
        ],
        "temperature": 0.7,
        "top_p": 0.95,
        "stream": events is not None,
    }
    if events is not None:
        body["max_tokens"] = events
    return json.dumps(body).encode()


def chat_request(events: int | None = None, key: str = KEY) -> bytes:
    """Give the bytes of a whole chat request on a connection that stays open."""
    body = chat_body(events)
    lines = [
        f"POST {PATH} HTTP/1.1",
        "host: 127.0.0.1",
        "user-agent: benchmark",
        "accept: */*",
        f"authorization: Bearer {key}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
