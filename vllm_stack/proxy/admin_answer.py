"""What the admin door says: a body and its type, and the lines that keep other web pages away from it."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
# An operator's browser shows foreign pages, too. None may frame this one, embed what the door says or read
# it (no CORS line is ever sent); and what our page shows, such as a line of a log, cannot become a program.
GUARD = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("X-Frame-Options", "DENY"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
)
_HERE = re.compile(r"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)


class Answer(NamedTuple):
    """A body of some type, and what else its head says."""

    body: bytes
    kind: str = JSON
    status: str = "200 OK"
    headers: tuple[tuple[str, str], ...] = ()


def in_json(value: dict[str, Any], status: str = "200 OK") -> Answer:
    return Answer(json.dumps(value).encode(), JSON, status)


def is_here(host: str | None) -> bool:
    """Tell whether a Host names this machine's loopback, by any port: a tunnel may end at another one.

    A foreign page can have its own name resolved to 127.0.0.1 (DNS rebinding) and be allowed to read what
    comes; but then the Host is that name. A program may leave it out, a browser never does.
    """
    return host is None or _HERE.fullmatch(host) is not None
