"""What Ray Serve is told of a stack: the value of serve.yaml, in Ray's words; pure.

The words are those of Ray 2.60: `ServeDeploySchema` (ray/serve/schema.py), and `LLMServingArgs` and
`LLMConfig` (ray/llm/_internal/serve/core), which `ray.serve.llm:build_openai_app` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_stack.address import LOOPBACK
from vllm_stack.options import Policy

APPLICATION = "vllm"
# Replicas of these have files and neighbours of this box: the proxy, and the door before it.
_ON_THE_HEAD = {"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}}
# How Ray spells our policies, where there is something to choose from. What is not here is left to its own
# rule: the less busy of two replicas chosen at random. Ray has a router by prefixes, too, which keeps them in
# one actor on any box: if that box is lost, no request of the cluster is answered any more (seen with 2.60).
ROUTERS: Mapping[Policy, str] = {
    "session": "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter",
    "round-robin": "ray.serve.experimental.round_robin_router:RoundRobinRouter",
}
# Requests in flight of each replica around which their number is kept, unless a limit says how many it
# takes. vLLM batches: Ray's own 2 would start a replica for every other request.
_BUSY = 64


@dataclass(frozen=True, slots=True)
class Served:
    """One model as Ray is told of it.

    `engine` are keyword arguments of vLLM's `AsyncEngineArgs`; `bundle` is what each of its processes takes
    of a box, in Ray's resources. `most_workers` is 0 where their number is fixed.
    """

    model: str
    names: tuple[str, ...]
    workers: int
    most_workers: int
    tensor_parallel_size: int
    pipeline_parallel_size: int
    bundle: Mapping[str, float]
    engine: Mapping[str, Any]
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        return max(self.workers, self.most_workers) > 1


@dataclass(frozen=True, slots=True)
class Serving:
    """What all models have in common; times in seconds, `side` is where `vllm_stack_serve.py` lies."""

    port: int
    keep_alive: int
    drain_timeout: float
    policy: Policy
    max_inflight: int | None
    side: str


def serve_config(models: Sequence[Served], serving: Serving) -> dict[str, Any]:
    """Give the value that `serve deploy` takes."""
    here = {"env_vars": {"PYTHONPATH": serving.side}}
    aliases = {alias: one.names[0] for one in models for alias in one.names[1:]}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {
            "host": LOOPBACK,
            "port": serving.port,
            "keep_alive_timeout_s": serving.keep_alive,
        },
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": "ray.serve.llm:build_openai_app",
                "runtime_env": here,
                "args": {
                    "llm_configs": [_llm_config(one, serving) for one in models],
                    "ingress_cls_config": {
                        "ingress_cls": "vllm_stack_serve:Ingress",
                        "ingress_extra_kwargs": {"aliases": aliases},
                    },
                    "ingress_deployment_config": {"num_replicas": 1, "ray_actor_options": _ON_THE_HEAD},
                },
            },
            {
                "name": "health",
                "route_prefix": "/health",
                "import_path": "vllm_stack_serve:health",
                "runtime_env": here,
                "args": {"application": APPLICATION},
                "deployments": [{"name": "Health", "num_replicas": 1, "ray_actor_options": _ON_THE_HEAD}],
            },
        ],
    }


def _llm_config(one: Served, serving: Serving) -> dict[str, Any]:
    sizes = {
        "tensor_parallel_size": one.tensor_parallel_size,
        "pipeline_parallel_size": one.pipeline_parallel_size,
    }
    return {
        "model_loading_config": {"model_id": one.names[0], "model_source": one.model},
        "engine_kwargs": {**sizes, **one.engine},
        "placement_group_config": {
            "bundle_per_worker": dict(one.bundle),
            # The GPUs of one stage talk at every layer, those of two stages between them: only these may
            # be on different boxes.
            "strategy": "STRICT_PACK" if one.pipeline_parallel_size == 1 else "PACK",
        },
        "deployment_config": _deployment(one, serving),
        # Ray gathers the tokens of a stream for 50 ms otherwise, the first one too.
        "experimental_configs": {"stream_batching_interval_ms": 0},
        **({"runtime_env": {"env_vars": dict(one.env)}} if one.env else {}),
    }


def _deployment(one: Served, serving: Serving) -> dict[str, Any]:
    limit = {} if serving.max_inflight is None else {"max_ongoing_requests": serving.max_inflight}
    router = ROUTERS.get(serving.policy) if one.several else None
    return {
        **_replicas(one, serving),
        **limit,
        # What a replica takes of its box is in its bundle: Ray would add a CPU of its own to it.
        **({"ray_actor_options": {"num_cpus": 0}} if "GPU" not in one.bundle else {}),
        "graceful_shutdown_timeout_s": serving.drain_timeout,
        **({"request_router_config": {"request_router_class": router}} if router else {}),
    }


def _replicas(one: Served, serving: Serving) -> dict[str, Any]:
    if not one.most_workers:
        return {"num_replicas": one.workers}
    return {
        "autoscaling_config": {
            "min_replicas": one.workers,
            "max_replicas": one.most_workers,
            "target_ongoing_requests": serving.max_inflight or _BUSY,
        }
    }
