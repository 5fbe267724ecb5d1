"""OpenAI's error shape, which every answer of the public door uses.

openai-python reads `code`, `param` and `type` from `body["error"]` (its `_exceptions.py`).
"""

from __future__ import annotations

import json

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
RATE_LIMIT = "rate_limit_error"


def error_body(message: str, kind: str, code: str, param: str | None = None) -> bytes:
    """Give the JSON body `{"error": {...}}` for an answer that is not a 2xx.

    `param` names the field of the request that is to blame.
    """
    error = {"message": message, "type": kind, "param": param, "code": code}
    return json.dumps({"error": error}).encode()


def error_event(message: str, kind: str, code: str) -> bytes:
    """Give one SSE event that makes an OpenAI client raise instead of ending quietly.

    openai-python's `Stream.__stream__` raises `APIError` for an event whose JSON has `error`;
    a stream that merely stops is taken for a complete answer.
    """
    return b"data: " + error_body(message, kind, code) + b"\n\n"
