"""How stacks tell each other's requests from those of clients (RFC 9110 section 7.6.3)."""

from __future__ import annotations

from vllm_stack.proxy.request import Request

_NAME = b"vllm-stack"
LINE = b"via: 1.1 %s\r\n" % _NAME


def is_from_stack(request: Request) -> bool:
    """Tell whether another stack sent this. A client that says so loses nothing but upstreams."""
    return any(_NAME in value for value in request.values(b"via"))
