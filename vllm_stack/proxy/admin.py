"""The admin door: a small read-only WSGI application for this machine alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door

_door: Door | None = None


def attach(door: Door) -> None:
    """Show this process's door from now on."""
    global _door
    _door = door


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer `GET /workers`: what is known of every worker, how many requests wait, and the totals."""
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _answer(start_response, "405 Method Not Allowed", {"error": "read-only"})
    if environ["PATH_INFO"] != "/workers" or _door is None:
        return _answer(start_response, "404 Not Found", {"error": "try /workers"})
    loads = _door.board.loads()
    workers = [
        {
            "name": backend.name,
            "address": str(backend.address),
            "model": _door.backends.models.names[backend.model][0],
            "ready": backend.ready,
            "state": backend.state,
            "in_flight": loads[backend.index],
        }
        for backend in _door.backends.all
    ]
    state = {"workers": workers, "waiting": _door.board.turns.waiting(), "totals": _door.board.totals()}
    return _answer(start_response, "200 OK", state)


def _answer(start_response: Callable[..., Any], status: str, value: dict[str, Any]) -> Iterable[bytes]:
    body = json.dumps(value).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
