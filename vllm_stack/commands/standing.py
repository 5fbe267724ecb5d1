"""How the servers of a stack stand with its proxy, as the admin door tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests

from vllm_stack.commands.admin_door import ask_admin
from vllm_stack.commands.stack import Stack
from vllm_stack.errors import UsageError

_PATIENCE = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Standing:
    """One server: its state in a word, what it has in flight, and in how many processes it gets more."""

    name: str
    state: str
    ready: bool
    in_flight: int
    open_in: int


def ask_standings(stack: Stack, timeout: float = _PATIENCE) -> dict[str, Standing]:
    """Ask the proxy how each server stands with it; before it listens it says nothing of any.

    `timeout` is in seconds.
    """
    try:
        return {
            worker["name"]: Standing(
                worker["name"], worker["state"], worker["ready"], worker["in_flight"], worker["open_in"]
            )
            for worker in _ask(stack, timeout)["workers"]
        }
    except (KeyError, TypeError):
        return {}


def ask_reloads(stack: Stack) -> tuple[int, str | None] | None:
    """Ask how often the proxy has reloaded, and what was wrong with the last time; None without an answer."""
    try:
        reloads = _ask(stack, _PATIENCE)["reloads"]
        return int(reloads["count"]), reloads["trouble"]
    except (KeyError, TypeError):
        return None


def _ask(stack: Stack, timeout: float) -> dict[str, Any]:
    try:
        answer = ask_admin(stack.admin_port, "/workers", timeout)
    except (requests.RequestException, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}


def server_named(stack: Stack, word: str) -> str:
    """Give the name of a server, which may be said as its number alone; raises `UsageError`."""
    name = f"worker-{word}" if word.isdecimal() else word
    if name not in stack.server_names:
        raise UsageError(f"{word} is no server of this stack: it has {', '.join(stack.server_names)}")
    return name


def others_open(stack: Stack, standings: dict[str, Standing], name: str) -> list[str]:
    """Name the other servers of the same model that get requests."""
    servers = stack.models[stack.model_of(name)]
    return [other for other in servers if other != name and (s := standings.get(other)) and s.open_in]
