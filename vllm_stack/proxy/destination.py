"""Where a request would like to go: to the worker of its routing key, or to the one that made a response.

vLLM keeps responses in the memory of the worker that made them (`VLLM_ENABLE_RESPONSES_API_STORE`).
Their ids say nothing of that worker: they are random, and clients may choose them (`request_id` in
the body). So a request that names one is offered to the workers in turn until one does not answer
404: nothing has to be remembered, no answer read and no body changed, and every proxy process
finds it.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from vllm_stack.proxy.rendezvous import mix
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.routing_key import RESPONSES, WITH_PREFIX, decode, header_key, prefix_key

_BELOW_RESPONSES = RESPONSES + b"/"


class Destination(Struct, frozen=True, gc=False):
    """`key` is the routing key; `stored` tells that only one worker knows what this is about.

    `model` is the number of the model that is asked (`models.Models`).
    """

    key: int | None = None
    stored: bool = False
    model: int = 0


ANYWHERE = Destination()
Reader = Callable[[Request], Destination]


def make_reader(policy: str, session_header: str) -> Reader:
    """Give the function that reads no more of a request than this policy needs."""
    if policy == "prefix":
        return _read_prefix
    if policy == "session":
        name = session_header.lower().encode()
        return lambda request: Destination(header_key(request, name), _names_response(request))
    return lambda request: Destination(None, True) if _names_response(request) else ANYWHERE


def among_models(read: Reader, model_of: Callable[[Request], int]) -> Reader:
    """Give a reader that knows several models: requests for two of them never share a routing key.

    It raises what `model_of` does.
    """

    def read_model_too(request: Request) -> Destination:
        model = model_of(request)
        place = read(request)
        key = None if place.key is None else mix(place.key + model)
        return Destination(key, place.stored, model)

    return read_model_too


def _read_prefix(request: Request) -> Destination:
    head = request.head
    path = head.path
    if path in WITH_PREFIX and head.method == b"POST":
        body = decode(request)
        if body is None:
            return ANYWHERE
        if path == RESPONSES and body.previous_response_id is not None:
            return Destination(None, True)
        return Destination(prefix_key(body))
    return Destination(None, True) if path.startswith(_BELOW_RESPONSES) else ANYWHERE


def _names_response(request: Request) -> bool:
    path = request.head.path
    if not path.startswith(RESPONSES):
        return False
    if path == RESPONSES:
        body = decode(request)
        return body is not None and body.previous_response_id is not None
    return path.startswith(_BELOW_RESPONSES)
