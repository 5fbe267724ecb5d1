"""A stack that was rendered, as the operator's verbs find it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, TcpAddress, parse_address, seen_from_here
from vllm_stack.errors import NoStack, StackError
from vllm_stack.keys.store import KeyPaths
from vllm_stack.layout import Layout
from vllm_stack.leftovers.processes import Identity, sweep
from vllm_stack.supervisor_rpc import Supervisor


@dataclass(frozen=True, slots=True)
class PublicDoor:
    """Where clients are served: http or https, the address it is bound to, and whether it asks for a key."""

    scheme: str
    host: str
    port: int
    key_required: bool

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        return f"{self.scheme}://{TcpAddress(seen_from_here(self.host), self.port)}/v1"


@dataclass(frozen=True, slots=True)
class Stack:
    """What stack.json says, and how to reach its supervisord."""

    layout: Layout
    # Where each worker listens.
    workers: dict[str, Address]
    # The models, by the name that clients say, and who serves each.
    models: dict[str, tuple[str, ...]]
    upstream_names: tuple[str, ...]
    admin_port: int
    stop_seconds: int
    door: PublicDoor
    # Seconds that a stop leaves to open answers.
    drain_timeout: float
    # Seconds after which a worker whose engine hangs is ended; 0: never.
    wedge_timeout: float
    # Where each worker computes: the words of its GPUs in CUDA_VISIBLE_DEVICES, and its cores.
    gpus: dict[str, tuple[str, ...]]
    cores: dict[str, tuple[int, ...]]
    # Where the servers elsewhere are.
    upstreams: dict[str, str]
    # Whether Ray runs the workers.
    on_ray: bool = False
    # The head (HOST:PORT) of the Ray cluster that this box has joined; then it has no door.
    joins: str | None = None

    @property
    def worker_names(self) -> tuple[str, ...]:
        return tuple(self.workers)

    def model_of(self, server: str) -> str:
        """Give the name that clients say to get the model of this server."""
        return next(model for model, servers in self.models.items() if server in servers)

    @property
    def asks_for_key(self) -> bool:
        """Whether its door asks for a key: as rendered, or since a named one was made."""
        return self.door.key_required or KeyPaths(self.layout.named_keys).in_use

    @property
    def server_names(self) -> tuple[str, ...]:
        """The workers, then the servers elsewhere."""
        return self.worker_names + self.upstream_names

    @property
    def supervisor(self) -> Supervisor:
        return Supervisor(self.layout.socket)

    def supervisord_runs(self) -> bool:
        """Tell whether a supervisord holds this stack's socket.

        One that answers nothing in time, or that it is stopping, is alive all the same.
        """
        return self.supervisor.pid() is not None

    def sweep(self, say: Callable[[str], object]) -> None:
        """End what is left of every program, those of earlier renders included, and `say` what that is.

        Raises `StackError` when something cannot be ended; then the rest is ended all the same.
        """
        ended = [sweep(Identity.of(self.layout, name), say) for name in self.program_names]
        if not all(ended):
            raise StackError("Some processes could not be ended; the lines above name them")

    @property
    def program_names(self) -> list[str]:
        """The proxy, and every worker that ever was."""
        proxy = [] if self.joins else ["proxy"]
        return [*proxy, *sorted({*self.layout.worker_boxes(), *self.worker_names})]


def find_stack_with_door(out: Path) -> Stack:
    """Do as `find_stack`; raises `NoStack` for a box that has joined a Ray cluster, and serves no clients."""
    stack = find_stack(out)
    if stack.joins is not None:
        raise NoStack(f"{stack.layout.out} has joined the Ray cluster of {stack.joins}: ask there")
    return stack


def find_stack(out: Path) -> Stack:
    """Read the stack in `out`, the one that runs if one does; raises `NoStack` if none was rendered."""
    layout = Layout.at(out)
    running = layout.stack_in_force() if layout.socket.exists() else None
    try:
        raw: dict[str, Any] = json.loads((running or layout.stack_json).read_text("utf-8"))
        return Stack(
            layout,
            {worker["name"]: parse_address(worker["address"]) for worker in raw["workers"]},
            {model["names"][0]: tuple(model["servers"]) for model in raw["models"]},
            tuple(upstream["name"] for upstream in raw["upstreams"]),
            raw["admin_port"],
            raw["stop_seconds"],
            PublicDoor(**{name: raw["door"][name] for name in ("scheme", "host", "port", "key_required")}),
            float(raw["drain_timeout"]),
            float(raw["wedge_timeout"]),
            {worker["name"]: tuple(worker["gpus"]) for worker in raw["workers"]},
            {worker["name"]: tuple(worker["cores"]) for worker in raw["workers"]},
            {upstream["name"]: upstream["address"] for upstream in raw["upstreams"]},
            raw["target"] == "ray",
            raw["joins"],
        )
    except FileNotFoundError:
        raise NoStack(
            f"There is no stack in {layout.out}: run `vllm-stack render` or name it with --out"
        ) from None
    except (KeyError, TypeError) as error:
        raise NoStack(
            f"{layout.stack_json} is of another version of vllm-stack ({error!r}): render anew. A stack that "
            f"runs is stopped by supervisorctl -c {layout.supervisord_conf} shutdown"
        ) from None
    except (OSError, ValueError) as error:
        raise NoStack(f"{layout.stack_json} cannot be read: {error}") from None
