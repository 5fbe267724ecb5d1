"""A stack that was rendered, as the operator's verbs find it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.errors import NoStack
from vllm_stack.layout import Layout, life_record
from vllm_stack.leftovers import Identity
from vllm_stack.supervisor_rpc import Supervisor


@dataclass(frozen=True, slots=True)
class PublicDoor:
    """Where clients are served: http or https, the address it is bound to, and whether it asks for a key."""

    scheme: str
    host: str
    port: int
    key_required: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """What stack.json says, and how to reach its supervisord."""

    layout: Layout
    worker_names: tuple[str, ...]
    upstream_names: tuple[str, ...]
    admin_port: int
    stop_seconds: int
    door: PublicDoor
    # Seconds after which a worker whose engine hangs is ended; 0: never.
    wedge_timeout: float

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.layout.socket)

    def identities(self) -> list[Identity]:
        """Name every program by what its processes have in common, those of earlier renders included."""
        layout = self.layout
        return [
            Identity(layout.process_title(name), layout.box(name), life_record(layout.state, name))
            for name in ("proxy", *sorted({*layout.worker_boxes(), *self.worker_names}))
        ]


def find_stack(out: Path) -> Stack:
    """Read the stack in `out`, the one that runs if one does; raises `NoStack` if none was rendered."""
    layout = Layout.at(out)
    running = layout.stack_in_force() if layout.socket.exists() else None
    try:
        raw: dict[str, Any] = json.loads((running or layout.stack_json).read_text("utf-8"))
        return Stack(
            layout,
            tuple(worker["name"] for worker in raw["workers"]),
            tuple(upstream["name"] for upstream in raw["upstreams"]),
            raw["admin_port"],
            raw["stop_seconds"],
            PublicDoor(**{name: raw["door"][name] for name in ("scheme", "host", "port", "key_required")}),
            float(raw.get("wedge_timeout") or 0),
        )
    except FileNotFoundError:
        raise NoStack(
            f"There is no stack in {layout.out}: run `vllm-stack render` or name it with --out"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoStack(f"{layout.stack_json} cannot be read: {error}") from None
