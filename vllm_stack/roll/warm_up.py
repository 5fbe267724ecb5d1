"""One request to a worker before clients get to it: what is slow once is slow for nobody."""

from __future__ import annotations

import http.client
import json
from typing import Any

from vllm_stack.address import Address
from vllm_stack.local_http import LocalConnection

_QUESTION = "Hello"
# What a server may be asked that answers anything at all; the first that it knows is its own.
_TRIALS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 1}),
    ("/v1/completions", {"prompt": _QUESTION, "max_tokens": 1}),
    ("/v1/embeddings", {"input": _QUESTION}),
    ("/pooling", {"input": _QUESTION}),
)


def warm_up(address: Address, key: str, model: str, timeout: float) -> str | None:
    """Ask a worker one thing, by the internal key; give what is wrong with its answer, None if nothing.

    A model that takes none of these (audio, say) refuses them all, which is an answer, too. `timeout` is
    in seconds, for each.
    """
    for path, body in _TRIALS:
        try:
            status, text = _ask(address, key, path, {"model": model, **body}, timeout)
        except TimeoutError:
            return f"it did not answer {path} within {timeout:.0f} s"
        except (OSError, http.client.HTTPException) as error:
            return f"it broke off {path} ({error})"
        if status >= 500:
            return f"it answered {path} with {status}: {text[:200].decode(errors='replace')}"
        if status < 400:
            return None
    return None


def _ask(address: Address, key: str, path: str, body: dict[str, Any], timeout: float) -> tuple[int, bytes]:
    connection = LocalConnection(address, timeout)
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    try:
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
