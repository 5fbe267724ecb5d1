"""`GET /v1/models` of a stack of several models: what OpenAI's clients choose from.

A server of each model is asked for what it says of itself (`max_model_len` and more), all at the same
time. A model that nobody speaks for just now is listed all the same: it is asked for by its names,
and a request may wait until a worker of it is ready. What a server calls itself beside those names
is left out, because nobody could ask for it here.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
import msgspec
from msgspec import Struct

from vllm_stack.proxy.answer_head import read_answer
from vllm_stack.proxy.backends import Backend, Backends
from vllm_stack.proxy.failures import BadAnswer, UpstreamFailure
from vllm_stack.proxy.framing import Dechunked, Framing, Length
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.upstream import Upstream

# Seconds for all servers together; who is later is busy, and its models are listed without it.
PATIENCE = 2.0
# Bytes of a server's answer.
_LONGEST = 1024 * 1024
_QUESTION = b"GET /v1/models HTTP/1.1\r\nhost: %s\r\n%s\r\n"
Entry = dict[str, Any]


class _Told(Struct):
    """A server's answer, in OpenAI's shape."""

    data: list[Entry]


_decode = msgspec.json.Decoder(_Told).decode


def model_list(backends: Backends, request: Request) -> bytes:
    """Give the JSON that answers this request; waits `PATIENCE` at most."""
    models = backends.models
    asked = [_speaker(backends, request, number) for number in range(len(models.names))]
    asking = [gevent.spawn(_entries, backend) for backend in asked]
    gevent.joinall(asking, timeout=PATIENCE)
    gevent.killall(asking)
    data = []
    for names, greenlet in zip(models.names, asking, strict=True):
        told = greenlet.value if isinstance(greenlet.value, dict) else {}  # else it was killed
        data += [told.get(name) or _bare_entry(name, names[0]) for name in names]
    return msgspec.json.encode({"object": "list", "data": data})


def _bare_entry(name: str, root: str) -> Entry:
    """Say what is known of a model without it, as vLLM would (`entrypoints/openai/models/protocol.py`)."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": root,
        "parent": None,
    }


def _speaker(backends: Backends, request: Request, model: int) -> Backend | None:
    """Give a server of a model that is ready, and may be asked on behalf of this request."""
    barred = backends.barred(request, model)
    return next((backend for backend in backends.all if backend.ready and backend.index not in barred), None)


def _entries(backend: Backend | None) -> dict[str, Entry]:
    """Give what a server says of each of its models, nothing if it says nothing that can be read."""
    if backend is None:
        return {}
    try:
        try:
            body = _ask(backend, backend.pool.take())
        except (OSError, UpstreamFailure):  # a kept connection may have died
            body = _ask(backend, backend.pool.connect())
        return {str(entry.get("id")): entry for entry in _decode(body).data}
    except (OSError, UpstreamFailure, ValueError, RecursionError):
        return {}


def _ask(backend: Backend, upstream: Upstream) -> bytes:
    """Give the body of a server's answer, over a connection that is kept if that ends cleanly.

    Raises `OSError` or `UpstreamFailure` for anything but a whole 200.
    """
    reusable = False
    try:
        upstream.send(_QUESTION % (backend.host or b"worker", backend.lines))
        data = _receive(upstream)
        while (read := read_answer(data)) is None:
            data += _receive(upstream)
        answer, size = read
        if answer.head.status != 200:
            raise BadAnswer(f"{backend.name} answered {answer.head.status} for its models")
        framing: Framing
        if answer.head.chunked:
            framing = Dechunked(False)
        elif answer.length is not None:
            framing = Length(answer.length)
        else:
            raise BadAnswer(f"The answer of {backend.name} has no clear end")
        body = framing.feed(data[size:])
        while not framing.done:
            if framing.failure is not None:
                raise framing.failure
            if len(body) > _LONGEST:
                raise BadAnswer(f"The answer of {backend.name} has no end")
            body += framing.feed(_receive(upstream))
        reusable = framing.clean and answer.head.keeps_alive
        return body
    finally:
        backend.pool.put(upstream) if reusable else upstream.close()


def _receive(upstream: Upstream) -> bytes:
    data = upstream.receive(2 * PATIENCE)
    if not data:
        raise BadAnswer("The server hung up in the middle of its answer")
    return data
