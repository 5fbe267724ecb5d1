"""What this box's part of a Ray cluster is told: the `ray` of ray.json as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.ray.resources import Wanted

# Where the agent of a box says whether its raylet is well (ray/dashboard/modules/reporter/healthz_agent.py).
AGENT_HEALTH = "/api/local_raylet_healthz"


@dataclass(frozen=True, slots=True)
class Node:
    """One box of a cluster: its head, or one that joins the head at `joins` (HOST:PORT).

    `host` is the address by which other boxes reach it, None where Ray may choose; `temp` holds Ray's
    sessions, `token` what all boxes must know. Times are seconds.
    """

    program: str
    host: str | None
    joins: str | None
    port: int
    dashboard_port: int
    # Where its agent says whether it is well; 0: on any free port.
    agent_port: int
    cpus: int
    gpus: int
    temp: Path
    token: Path
    drain_timeout: float
    # Of the head alone: what it serves, what that needs, and how long it may take.
    wanted: tuple[Wanted, ...] = ()
    serve: Mapping[str, Any] | None = None
    start_timeout: float = 0.0


def node_as_json(node: Node) -> dict[str, Any]:
    """Give the value that `read_node` reads."""
    values = {name: getattr(node, name) for name in Node.__slots__}
    wanted = [{name: getattr(one, name) for name in Wanted.__slots__} for one in node.wanted]
    return {**values, "temp": str(node.temp), "token": str(node.token), "wanted": wanted}


def read_node(raw: Mapping[str, Any]) -> Node:
    """Read what `node_as_json` gave; raises `KeyError` or `TypeError` for anything else."""
    return Node(
        **{
            **raw,
            "temp": Path(raw["temp"]),
            "token": Path(raw["token"]),
            "wanted": tuple(Wanted(**one) for one in raw["wanted"]),
        }
    )


def start_argv(node: Node, free_port: int) -> list[str]:
    """Give the command line of `ray start`, which stays in the foreground.

    `free_port` is for the server of Ray's client protocol, which is not used, and cannot be left out.
    """
    argv = [node.program, "start", "--block", "--disable-usage-stats", "--log-color", "false"]
    argv += ["--temp-dir", str(node.temp), "--num-cpus", str(node.cpus), "--num-gpus", str(node.gpus)]
    if node.host is not None:
        argv += ["--node-ip-address", node.host]
    argv += ["--dashboard-agent-listen-port", str(node.agent_port)]
    if node.joins is not None:
        return [*argv, "--address", node.joins]
    argv += ["--head", "--port", str(node.port), "--ray-client-server-port", str(free_port)]
    return [*argv, "--dashboard-host", "127.0.0.1", "--dashboard-port", str(node.dashboard_port)]
