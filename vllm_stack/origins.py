"""Origins of the web pages that may use the door from a browser (`--cors-origin`)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllm_stack.errors import UsageError

ANY = "*"
# As a browser writes it (RFC 6454 section 6.2): a scheme, a host, a port where it is not the scheme's
# own. Extensions and desktop applications have schemes of theirs.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?")
_DEFAULT_PORTS = (("https://", ":443"), ("http://", ":80"))


def parse_origins(values: Iterable[str]) -> tuple[str, ...]:
    """Give origins as browsers spell them, without doubles; raises `UsageError` naming what is none."""
    return tuple(dict.fromkeys(_parse(value) for value in values))


def _parse(value: str) -> str:
    origin = value.lower()
    if origin in (ANY, "null"):  # "null" is what sandboxed frames and local files send
        return origin
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(
            f"--cors-origin {value!r} is not an origin: write scheme://host[:port] without a path, "
            "e.g. https://app.example.com, or * for every page"
        )
    for scheme, port in _DEFAULT_PORTS:
        if origin.startswith(scheme):
            origin = origin.removesuffix(port)
    return origin
