"""Options and inventory become one plan: every decision is made here, once, and purely.

Nothing below starts a process, reads a file or a clock. Derived waits are in `timings` with their
reasons; the templates repeat the reasons as comments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Literal

from vllm_stack.address import LOOPBACK, Address, TcpAddress
from vllm_stack.gpus.amd_mask import kept_masks
from vllm_stack.gpus.box import Vendor
from vllm_stack.inventory import Inventory
from vllm_stack.layout import RAY, Layout
from vllm_stack.options import Options
from vllm_stack.passthrough import accept
from vllm_stack.planning.deployment import Deployment, check_distinct
from vllm_stack.planning.on_ray import RayPlan, ray_notes, ray_plan
from vllm_stack.planning.option_rules import check_options
from vllm_stack.planning.placement import places
from vllm_stack.planning.timings import Timings
from vllm_stack.planning.worker_command import serve_argv, serve_environment, worker_addresses
from vllm_stack.ports import check_overlap, port_uses, ports_of_others
from vllm_stack.records.in_force import fingerprint
from vllm_stack.service import Service
from vllm_stack.vllm_command import VllmCommand


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One `vllm serve`: its place on the machine and what it is started with."""

    name: str
    address: Address
    gpus: tuple[str, ...]
    # Bytes that the smallest of its GPUs has, where the driver tells.
    memory: int | None
    cores: tuple[int, ...]
    # Names what it runs: the same name, the same caches of vLLM.
    engine: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class UpstreamPlan:
    """A server elsewhere that joins the choice."""

    name: str
    address: TcpAddress


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model: what clients may call it, and who serves it."""

    options: Options
    names: tuple[str, ...]
    workers: tuple[WorkerPlan, ...]
    upstreams: tuple[UpstreamPlan, ...]

    @property
    def servers(self) -> tuple[str, ...]:
        """The names of its workers, and of its servers elsewhere."""
        workers = (worker.name for worker in self.workers)
        return (*workers, *(upstream.name for upstream in self.upstreams))


@dataclass(frozen=True, slots=True)
class Choice:
    """Names that clients may ask for, and the servers that one of them is chosen from."""

    names: tuple[str, ...]
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole stack, decided; rendering it needs nothing else.

    `options` are those of the first model, of which only what all have in common may be asked here.
    """

    layout: Layout
    options: Options
    timings: Timings
    models: tuple[ModelPlan, ...]
    host: str
    proxy_processes: int
    python: Path
    root: bool
    vllm_version: str | None
    notes: tuple[str, ...]
    vendor: Vendor = "nvidia"
    # Set where a systemd unit is to be written.
    service: Service | None = None
    # Whether named keys were made for the stack that is here.
    named_keys: bool = False
    # Set where Ray runs the workers, and this box's part of its cluster stands in their place.
    ray: RayPlan | None = None
    head: WorkerPlan | None = None

    @property
    def has_door(self) -> bool:
        """Whether clients come here; they do not where this box only joins the cluster of another."""
        return self.ray is None or self.ray.node.joins is None

    @property
    def workers(self) -> tuple[WorkerPlan, ...]:
        """Those of all models; on Ray the head of the cluster, which serves them all."""
        if self.head is not None:
            return (self.head,)
        return tuple(worker for model in self.models for worker in model.workers)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What the proxy chooses among: on Ray the cluster, which goes by the model's name itself."""
        if self.head is not None:
            return (Choice(tuple(name for model in self.models for name in model.names), (self.head.name,)),)
        return tuple(Choice(model.names, model.servers) for model in self.models)

    @property
    def upstreams(self) -> tuple[UpstreamPlan, ...]:
        """Those of all models."""
        return tuple(upstream for model in self.models for upstream in model.upstreams)

    @property
    def device(self) -> Literal["cpu", "cuda", "rocm"]:
        """What the workers compute on."""
        if self.options.on_cpu:
            return "cpu"
        return "rocm" if self.vendor == "amd" else "cuda"

    @property
    def open_to_all(self) -> bool:
        """Any key is accepted, because none was configured."""
        return not (self.options.asks_key or self.named_keys)

    @property
    def door_address(self) -> str:
        """The public door as gunicorn binds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.options.port}"


def make_plan(deployments: Sequence[Deployment]) -> Plan:
    """Decide the whole stack.

    Raises `InsufficientGpus`, `GpuBusy`, `ModelError`, `PortError`, `OutputError` or `UsageError` with one
    sentence that names the value and the way out.
    """
    stack, inventory = deployments[0].options, deployments[0].inventory
    layout = Layout.at(stack.out)
    all_options = [one.options for one in deployments]
    check_options(all_options)
    check_distinct(deployments)
    check_overlap(port_uses(all_options), ports_of_others(stack))
    timings = Timings(stack.restart_delay, stack.drain_timeout)
    ray = ray_plan(deployments, layout, timings) if stack.on_ray else None
    first_upstreams = accumulate((len(one.upstreams) for one in all_options), initial=0)
    return Plan(
        layout=layout,
        options=stack,
        timings=timings,
        models=tuple(
            ModelPlan(one.options, one.names, _workers(one, layout, timings), _upstreams(one.options, first))
            for one, first in zip(deployments, first_upstreams, strict=False)
        ),
        host=stack.door_host,
        proxy_processes=stack.proxy_processes or _proxy_processes(all_options, len(inventory.machine.cores)),
        python=inventory.python,
        root=inventory.root,
        vllm_version=inventory.found_vllm().version if stack.all_workers else None,
        notes=tuple(_notes(all_options, inventory)),
        vendor=inventory.gpus.vendor,
        service=inventory.service,
        named_keys=inventory.named_keys,
        ray=ray,
        head=None
        if ray is None
        else head_plan(ray, TcpAddress(LOOPBACK, stack.base_port), inventory, layout),
    )


def head_plan(ray: RayPlan, address: TcpAddress, inventory: Inventory, layout: Layout) -> WorkerPlan:
    """Give the program that holds up this box's part of a cluster, where a worker would stand.

    At `address` it says whether it is well.
    """
    return WorkerPlan(
        name=RAY,
        address=address,
        gpus=ray.gpus,
        memory=None,
        cores=(),
        engine=RAY,
        argv=(str(inventory.python), "-P", "-m", "vllm_stack.ray", str(layout.worker_json(RAY))),
        env=dict(ray.env),
    )


def _workers(deployment: Deployment, layout: Layout, timings: Timings) -> tuple[WorkerPlan, ...]:
    options, inventory = deployment.options, deployment.inventory
    model = inventory.found_model()
    args = accept(options.vllm_args)
    if not options.workers or options.on_ray:
        return ()
    vllm = inventory.found_vllm()
    kept = kept_masks(inventory.gpu_masks, inventory.gpus)
    memory_total = inventory.machine.memory_total
    placed = zip(
        options.worker_indices, worker_addresses(options, layout), places(options, inventory), strict=True
    )
    return tuple(
        WorkerPlan(
            name=(name := f"worker-{index}"),
            address=address,
            gpus=place.tokens,
            memory=place.memory,
            cores=place.cores,
            engine=_engine(vllm, options, args),
            argv=serve_argv(vllm.argv, model.name, options, timings, address, memory_total, args),
            env=serve_environment(options, timings, layout, name, place.cores if options.on_cpu else ())
            | kept,
        )
        for index, address, place in placed
    )


def _upstreams(options: Options, first: int) -> tuple[UpstreamPlan, ...]:
    return tuple(
        UpstreamPlan(f"upstream-{index}", address) for index, address in enumerate(options.upstreams, first)
    )


def _engine(vllm: VllmCommand, options: Options, args: tuple[str, ...]) -> str:
    """Give a short name for what every worker runs: the same name, the same caches of vLLM."""
    what = [
        *vllm.argv,
        vllm.version,
        options.model,
        options.revision,
        options.tensor_parallel_size,
        options.on_cpu,
    ]
    return fingerprint(str(word).encode() for word in (*what, *args))


def _proxy_processes(models: Sequence[Options], cores: int) -> int:
    """Choose by what can come and what can be spared: one for two servers, on an eighth of the cores.

    A process moves some 30,000 streamed events a second (the README says what one costs); two
    servers with 256 streams of 40 tokens a second each make 20,000. Where no model runs, half of
    the cores will do.
    """
    servers = sum(one.workers + len(one.upstreams) for one in models)
    to_spare = cores // (8 if models[0].all_workers else 2)
    return max(1, min(math.ceil(servers / 2), to_spare))


def _without_a_key(host: str | None, named_keys: bool) -> str:
    """Say who comes in where the options alone ask for no key."""
    if named_keys:
        where = "on loopback only (--require-key opens it to the network)" if host is None else f"on {host}"
        return f"The door asks for the keys of `vllm-stack keys`, and opens {where}"
    if host is None:
        where = "the door opens on loopback only (--api-key-file or --require-key opens it to the network)"
    else:
        where = f"and it opens on {host}: anyone who reaches it can use the model"
    return f"No API key: any key is accepted; {where}"


def _notes(models: Sequence[Options], inventory: Inventory) -> list[str]:
    """Say what a user should know before starting, and nothing they need not."""
    options = models[0]
    notes = []
    if not options.asks_key:
        notes.append(_without_a_key(options.host, inventory.named_keys))
    if options.on_ray:
        notes += ray_notes(options, models)
    cores = len(inventory.machine.cores)
    if options.on_cpu and options.all_workers > cores:
        notes.append(f"{options.all_workers} workers share {cores} CPU cores: expect them to be slow")
    upstreams = dict.fromkeys(address for one in models for address in one.upstreams)
    open_ways = ", ".join(f"http://{address}" for address in upstreams if not address.is_loopback)
    if open_ways:
        notes.append(f"Keys and prompts go to {open_ways} in plain HTTP: whoever is on the way can read them")
    if inventory.tls_warning is not None:
        notes.append(inventory.tls_warning)
    if inventory.service is not None and inventory.service.missed:
        notes.append(
            f"The systemd unit does not set {', '.join(inventory.service.missed)}: what the stack needs of "
            f"that goes into {Layout.at(options.out).environment} (mode 600), a NAME=value a line"
        )
    return notes
