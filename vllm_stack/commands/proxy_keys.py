"""What the proxy says of keys at its admin door, and the wait until it knows of a change."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import requests

from vllm_stack.commands.admin_door import ask_admin
from vllm_stack.commands.stack import Stack

# Seconds. Every process of the proxy looks at the file once a second.
PATIENCE = 10.0
_LOOK = 0.1
_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class ProxyKeys:
    """What it goes by: a generation for each of its processes, and what each key has used."""

    generations: tuple[int, ...]
    usage: dict[str, dict[str, int]]

    def behind(self, generation: int) -> int:
        """Give how many processes do not go by this generation yet, or by a later one."""
        return sum(seen < generation for seen in self.generations)


@dataclass(frozen=True, slots=True)
class Taken:
    """How far a change of the keys has come: `proxy` says it in a word."""

    generation: int
    # The last that was heard of the proxy; None while none runs that knows named keys.
    heard: ProxyKeys | None

    @property
    def behind(self) -> int:
        return 0 if self.heard is None else self.heard.behind(self.generation)

    @property
    def proxy(self) -> str:
        if self.heard is None:
            return "not running"
        return "late" if self.behind or not self.heard.generations else "taken"


def ask_keys(stack: Stack, page: str = "/keys") -> ProxyKeys | None:
    """Ask the proxy of this stack; None if there is none.

    One that says nothing in time is there, and goes by nobody knows what. `/keys/seen` leaves out what the
    keys have used, which takes a while to count for thousands.
    """
    try:
        answer = ask_admin(stack.admin_port, page, _TIMEOUT)
        if Path(answer["file"]) != stack.layout.named_keys:
            return None  # another stack's
        usage = {key.pop("name"): key for key in answer.get("keys", ())}
        return ProxyKeys(tuple(answer["generations"]), usage)
    except requests.Timeout:
        return ProxyKeys((), {})
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None


def await_taken(stack: Stack, generation: int) -> Taken:
    """Wait until all processes of the proxy go by this generation, `PATIENCE` at most."""
    deadline = time.monotonic() + PATIENCE
    while True:
        taken = Taken(generation, ask_keys(stack, "/keys/seen"))
        if taken.proxy != "late" or time.monotonic() > deadline:
            return taken
        time.sleep(_LOOK)
