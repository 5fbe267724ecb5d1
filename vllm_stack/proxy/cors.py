"""What a browser wants to read before a page of another origin may use the door (Fetch standard, CORS).

A browser asks first, without the page's key: the preflight is answered before the key check. All that
is decided here goes onto `Request.cors`; it stays None where no origin was named, and then no answer
is touched.
"""

from __future__ import annotations

from collections.abc import Iterable

from vllm_stack.origins import ANY
from vllm_stack.proxy.request import Request

Headers = tuple[tuple[str, str], ...]

_PREFIX = b"access-control-"
_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
# For a browser that does not say which it will send; `*` would not cover authorization.
_HEADERS = "authorization, content-type, traceparent, tracestate, x-api-key, x-request-id"
# What clients act on, beside the few that every page may read.
_EXPOSED = "retry-after, x-request-id, x-should-retry"
# Seconds a browser may go without asking again; none keeps it for longer than two hours.
_MAX_AGE = "7200"


class Cors:
    """The origins that may use the door."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._any = ANY.encode() in self._origins

    def admit(self, request: Request) -> bool:
        """Note what the answer must carry; True for a preflight, which needs no other answer."""
        origin = self._origin_of(request)
        if origin is None:
            request.cors = ()  # still set: what a worker says of origins is dropped
            return False
        request.cors = self._allowed(origin)
        if request.method != b"OPTIONS" or not request.values(b"access-control-request-method"):
            request.cors += (("access-control-expose-headers", _EXPOSED),)
            return False
        wanted = b", ".join(request.values(b"access-control-request-headers"))
        request.cors += (
            ("access-control-allow-methods", _METHODS),
            ("access-control-allow-headers", wanted.decode("latin-1") or _HEADERS),
            ("access-control-max-age", _MAX_AGE),
        )
        return True

    def _origin_of(self, request: Request) -> bytes | None:
        origins = request.values(b"origin")
        return origins[0] if len(origins) == 1 and (self._any or origins[0] in self._origins) else None

    def _allowed(self, origin: bytes) -> Headers:
        if self._any:
            return (("access-control-allow-origin", ANY),)
        return (("access-control-allow-origin", origin.decode()), ("vary", "Origin"))


def replace(headers: Iterable[tuple[bytes, bytes]], ours: Headers) -> list[tuple[bytes, bytes]]:
    """Give a worker's headers with our word on origins instead of its own."""
    kept = [pair for pair in headers if not pair[0].lower().startswith(_PREFIX)]
    return kept + [(name.encode(), value.encode("latin-1")) for name, value in ours]
