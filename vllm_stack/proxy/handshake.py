"""Which requests ask for a tunnel, and which web pages may have one (RFC 6455).

CORS does not cover WebSockets: a browser opens one to anywhere without asking first, and the page
reads what comes. The `Origin` it sends along is all there is to go by (RFC 6455 section 10.2).
Without a key, any page that the operator visits could talk to a door on loopback.
"""

from __future__ import annotations

from collections.abc import Collection

from vllm_stack.origins import ANY
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.routes import REALTIME

WEBSOCKET = b"websocket"
_ANY = ANY.encode()
_DEFAULT_PORTS = {b"http": b":80", b"https": b":443"}


def asks_tunnel(head: RequestHead) -> bool:
    """Tell whether this head is a WebSocket's, on the route that has one (RFC 6455 section 4.1).

    What comes behind it is then no HTTP any more. A body, or a second protocol to choose from, would
    leave room to read it in two ways: such a request is answered as if it had not asked.
    """
    return (
        head.method == b"GET"
        and head.http_1_1
        and head.path == REALTIME
        and [value.lower() for value in head.values(b"upgrade")] == [WEBSOCKET]
        and b"upgrade" in _words(head, b"connection")
        and not head.values(b"transfer-encoding")
        and not any(int(length) for length in head.values(b"content-length"))
    )


def check_origin(head: RequestHead, allowed: Collection[bytes]) -> None:
    """Raise `Refusal` 403 for a page of an origin that is neither allowed nor the door's own.

    Programs send no Origin, or one made from the door's address (websocket-client does).
    """
    origins = head.values(b"origin")
    if not origins or _ANY in allowed:
        return
    if len(origins) == 1 and (origins[0] in allowed or _is_own(origins[0], head)):
        return
    message = "Web pages of this origin may not open a WebSocket here (--cors-origin allows one)"
    raise Refusal(403, "origin_not_allowed", message)


def _is_own(origin: bytes, head: RequestHead) -> bool:
    """Tell whether an origin is what the client calls the door; the scheme's own port may be left out."""
    scheme, _, authority = origin.lower().partition(b"://")
    port = _DEFAULT_PORTS.get(scheme)
    hosts = [host.lower() for host in head.values(b"host")]
    return port is not None and [authority.removesuffix(port)] == [host.removesuffix(port) for host in hosts]


def _words(head: RequestHead, name: bytes) -> set[bytes]:
    return {word.strip().lower() for value in head.values(name) for word in value.split(b",")}
