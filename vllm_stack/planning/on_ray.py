"""A stack that Ray runs: what Ray Serve is told, and what this box gives to the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from vllm_stack.layout import Layout
from vllm_stack.options import Options, Policy
from vllm_stack.planning.cpu_share import kv_cache_bytes
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.placement import usable_gpus
from vllm_stack.planning.timings import Timings
from vllm_stack.ray.engine_kwargs import EngineKwargs
from vllm_stack.ray.node import Node
from vllm_stack.ray.resources import Wanted
from vllm_stack.ray.serve_config import ROUTERS, Served, Serving, serve_config

# What Ray decides by rules of its own, whatever we say: `plan` and `render` name those that were set.
WITHOUT_COUNTERPART = {
    "wedge_timeout": "Ray asks a replica whether it is well, and does not see an engine that hangs",
    "start_stagger": "Ray starts all replicas at once",
    "restart_delay_max": "Ray starts failed replicas again by rules of its own",
}


@dataclass(frozen=True, slots=True)
class RayPlan:
    """This box's part of a cluster: the GPUs that it gives, and as its head what all of it serves."""

    node: Node
    serve: Mapping[str, Any] | None
    gpus: tuple[str, ...]
    env: Mapping[str, str]


def ray_plan(deployments: Sequence[Deployment], layout: Layout, timings: Timings) -> RayPlan:
    """Decide what Ray is told of these models; raises `StackError` where it, or vLLM, is not there."""
    stack, inventory = deployments[0].options, deployments[0].inventory
    ray = inventory.found_ray()
    usable = () if stack.on_cpu else (usable_gpus(one.options, one.inventory) for one in deployments)
    gpus = tuple(dict.fromkeys(chain.from_iterable(usable)))
    serving = Serving(
        port=stack.base_port,
        keep_alive=timings.worker_keep_alive,
        drain_timeout=stack.drain_timeout,
        policy=stack.policy,
        max_inflight=stack.max_inflight_per_worker,
        side=str(side_directory()),
    )
    workers = sum(one.options.workers for one in deployments)
    serve = serve_config([_served(one, workers) for one in deployments], serving)
    node = Node(
        program=str(ray.program),
        host=stack.ray_host,
        joins=None,
        port=stack.ray_port,
        dashboard_port=stack.ray_dashboard_port,
        agent_port=0,
        cpus=len(inventory.machine.cores),
        gpus=len(gpus),
        temp=layout.ray_temp,
        token=layout.ray_token,
        drain_timeout=stack.drain_timeout,
        wanted=tuple(_wanted(one.options) for one in deployments),
        serve=serve,
        start_timeout=stack.start_timeout,
    )
    env = node_environment(layout.ray_token, 0.0, inventory.gloo_interface)
    return RayPlan(node, serve, gpus, env | {"RAY_SERVE_SESSION_ID_HEADER_KEY": stack.session_header})


def side_directory() -> Path:
    """Give the directory whose only module is what runs inside Ray Serve."""
    from vllm_stack import ray

    return Path(ray.__file__).parent / "side"


def node_environment(token: Path, drain_timeout: float, interface: str | None) -> dict[str, str]:
    """Give what is added to the environment of `ray start`, and so to all that Ray starts on this box.

    `drain_timeout` (seconds) is how long Ray waits at a TERM for what runs here to move elsewhere; the head
    has ended all of it before.
    """
    return {
        # Whoever can reach a Ray cluster without a token runs what he likes on it.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": f"{drain_timeout:g}",
        # Stages on two boxes do not meet on loopback, where the wrapper keeps them otherwise.
        **({"GLOO_SOCKET_IFNAME": interface} if interface else {}),
    }


def _served(one: Deployment, workers: int) -> Served:
    options = one.options
    kwargs = one.inventory.found_engine_kwargs()
    return Served(
        model=one.inventory.found_model().name,
        names=one.names,
        workers=options.workers,
        most_workers=options.most_workers,
        tensor_parallel_size=options.tensor_parallel_size,
        pipeline_parallel_size=options.pipeline_parallel_size,
        bundle={"CPU": 1} if options.on_cpu else {"GPU": 1},
        engine=_engine(options, kwargs, one.inventory.machine.memory_total, workers),
        # Which cores a replica gets is not known; left to itself every engine takes the first ones.
        env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if options.on_cpu else {},
    )


def _engine(options: Options, kwargs: EngineKwargs, memory_total: int, workers: int) -> dict[str, Any]:
    """Give vLLM's arguments: ours, and then what the user passed on, which wins."""
    ours: dict[str, Any] = {"revision": options.revision} if options.revision else {}
    if options.on_cpu:
        ours["enforce_eager"] = True
        if "gpu_memory_utilization" not in kwargs.kwargs:
            ours["kv_cache_memory_bytes"] = kv_cache_bytes(workers, memory_total)
    return {**ours, **kwargs.kwargs}


def _wanted(options: Options) -> Wanted:
    return Wanted(
        replicas=options.workers,
        stages=options.pipeline_parallel_size,
        size=options.tensor_parallel_size,
        resource="CPU" if options.on_cpu else "GPU",
    )


def _instead_of(policy: Policy) -> str:
    """Say what of a policy is lost; that of least load is as good as Ray's."""
    if policy == "prefix":
        return ": what a prefix has in its cache does not count (docs/ray.md says why)"
    return "" if policy == "least-loaded" else f": --policy {policy} does not apply"


def ray_notes(options: Options, models: Sequence[Options]) -> list[str]:
    """Name what was set and has no counterpart on Ray, and what else differs there."""
    defaults = {field.name: field.default for field in fields(Options)}
    notes = [
        f"--{name.replace('_', '-')} does not apply: {why}"
        for name, why in WITHOUT_COUNTERPART.items()
        if getattr(options, name) != defaults[name]
    ]
    if options.policy not in ROUTERS and any(max(one.workers, one.most_workers) > 1 for one in models):
        notes.append(
            "Ray chooses a replica by its own rule, the less busy of two" + _instead_of(options.policy)
        )
    if options.spans_boxes and any(one.model.startswith("/") for one in models):
        notes.append("A model in a directory must be in the same directory on every box")
    return notes
