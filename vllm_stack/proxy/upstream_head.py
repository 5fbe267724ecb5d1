"""The head that a worker gets: one well-formed request, whatever the client's looked like."""

from __future__ import annotations

from vllm_stack.proxy.answer_head import HOP_BY_HOP
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routes import Route

# What the worker gets from us instead: its own key, our framing, our view of the connection.
_NOT_FORWARDED = HOP_BY_HOP | {
    b"authorization",
    b"content-length",
    b"expect",
    b"forwarded",
    b"host",
    b"x-api-key",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
    b"x-request-id",
}
# Of a tunnel: the door has looked at it, and the next stack would compare it with another Host.
_JUDGED = frozenset({b"origin"})
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


def upstream_head(request: Request, backend: Backend, peer: Peer) -> bytes:
    """Give the head that this worker gets."""
    head = request.head
    if head.forwarded is None:
        head.forwarded = _forwarded(head)
    parts = [
        head.forwarded if backend.host is None else _with_host(head.forwarded, backend.host),
        backend.lines,
        b"x-request-id: ",
        request.id,
        b"\r\nx-forwarded-for: ",
        peer.ip,
    ]
    if peer.secure:
        parts.append(b"\r\nx-forwarded-proto: https")
    if not request.complete:  # an upload
        length = request.length
        parts.append(
            b"\r\ntransfer-encoding: chunked" if length is None else b"\r\ncontent-length: %d" % length
        )
    elif request.body_size or head.method in _WITH_BODY:
        parts.append(b"\r\ncontent-length: %d" % request.body_size)
    parts.append(b"\r\n\r\n")
    return b"".join(parts)


def _with_host(forwarded: bytes, host: bytes) -> bytes:
    """Put a Host of its own into the lines that a worker would get, where it is the second."""
    start, _, rest = forwarded.split(b"\r\n", 2)
    return b"".join((start, b"\r\nhost: ", host, b"\r\n", rest))


def _forwarded(head: RequestHead) -> bytes:
    """Give the lines that are the same for every request with this head.

    Header names with an underscore are dropped: frameworks take `X_Auth` for `X-Auth`.
    """
    named = {word.strip().lower() for value in head.values(b"connection") for word in value.split(b",")}
    tunnel = head.route is Route.TUNNEL
    dropped = _NOT_FORWARDED | named | (_JUDGED if tunnel else frozenset())
    host = head.values(b"host") or [b"worker"]
    lines = [b"%s %s HTTP/1.1" % (head.method, head.target), b"host: " + host[0]]
    lines += [
        b"%s: %s" % pair for pair in head.headers if pair[0].lower() not in dropped and b"_" not in pair[0]
    ]
    if tunnel:
        lines += [b"connection: upgrade", b"upgrade: websocket"]
    return b"\r\n".join(lines) + b"\r\n"
