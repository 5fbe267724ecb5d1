"""Options and inventory become one plan: every decision is made here, once, and purely.

Nothing below starts a process, reads a file or a clock. Derived waits are in `timings` with their
reasons; the templates repeat the reasons as comments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vllm_stack.address import Address
from vllm_stack.gpus.amd_mask import kept_masks
from vllm_stack.gpus.box import Vendor
from vllm_stack.in_force import fingerprint
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.option_rules import check_options
from vllm_stack.options import Options
from vllm_stack.passthrough import accept
from vllm_stack.placement import places
from vllm_stack.ports import check_overlap, port_uses
from vllm_stack.timings import Timings
from vllm_stack.vllm_command import VllmCommand
from vllm_stack.worker_command import serve_argv, serve_environment, worker_addresses


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One `vllm serve`: its place on the machine and what it is started with."""

    name: str
    address: Address
    gpus: tuple[str, ...]
    # Bytes that the smallest of its GPUs has, where the driver tells.
    memory: int | None
    cores: tuple[int, ...]
    argv: tuple[str, ...]
    env: dict[str, str] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole stack, decided; rendering it needs nothing else."""

    layout: Layout
    options: Options
    timings: Timings
    workers: tuple[WorkerPlan, ...]
    host: str
    proxy_processes: int
    python: Path
    root: bool
    vllm_version: str | None
    engine: str
    notes: tuple[str, ...]
    vendor: Vendor = "nvidia"

    @property
    def device(self) -> Literal["cpu", "cuda", "rocm"]:
        """What the workers compute on."""
        if self.options.on_cpu:
            return "cpu"
        return "rocm" if self.vendor == "amd" else "cuda"

    @property
    def open_to_all(self) -> bool:
        """Any key is accepted, because none was configured."""
        return not self.options.api_keys

    @property
    def door_address(self) -> str:
        """The public door as gunicorn binds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.options.port}"


def make_plan(options: Options, inventory: Inventory) -> Plan:
    """Decide the whole stack.

    Raises `InsufficientGpus`, `GpuBusy`, `ModelError`, `PortError`, `OutputError` or `UsageError` with one
    sentence that names the value and the way out.
    """
    layout = Layout.at(options.out)
    check_options(options)
    check_overlap(port_uses(options))
    model = inventory.found_model()
    timings = Timings(options.restart_delay, options.drain_timeout)
    args = accept(options.vllm_args)
    vllm = VllmCommand((), None) if not options.workers else inventory.found_vllm()
    kept = kept_masks(inventory.gpu_masks, inventory.gpus)
    workers = []
    for index, (address, place) in enumerate(
        zip(worker_addresses(options, layout), places(options, inventory), strict=True)
    ):
        name = f"worker-{index}"
        cpu_cores = place.cores if options.on_cpu else ()
        workers.append(
            WorkerPlan(
                name=name,
                address=address,
                gpus=place.tokens,
                memory=place.memory,
                cores=place.cores,
                argv=serve_argv(
                    vllm.argv, model.name, options, timings, address, inventory.machine.memory_total, args
                ),
                env=serve_environment(options, timings, layout, name, cpu_cores) | kept,
            )
        )
    return Plan(
        layout=layout,
        options=options,
        timings=timings,
        workers=tuple(workers),
        host=options.door_host,
        proxy_processes=options.proxy_processes or _proxy_processes(options, len(inventory.machine.cores)),
        python=inventory.python,
        root=inventory.root,
        vllm_version=vllm.version,
        engine=_engine(vllm, options, args),
        notes=tuple(_notes(options, inventory)),
        vendor=inventory.gpus.vendor,
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


def _proxy_processes(options: Options, cores: int) -> int:
    """Choose by what can come and what can be spared: one for two servers, on an eighth of the cores.

    A process moves some 30,000 streamed events a second (the README says what one costs); two
    servers with 256 streams of 40 tokens a second each make 20,000. Where no model runs, half of
    the cores will do.
    """
    servers = options.workers + len(options.upstreams)
    to_spare = cores // (8 if options.workers else 2)
    return max(1, min(math.ceil(servers / 2), to_spare))


def _notes(options: Options, inventory: Inventory) -> list[str]:
    """Say what a user should know before starting, and nothing they need not."""
    notes = []
    if not options.api_keys:
        where = (
            "the door opens on loopback only (--api-key-file FILE opens it to the network)"
            if options.host is None
            else f"and it opens on {options.host}: anyone who reaches it can use the model"
        )
        notes.append(f"No API key: any key is accepted; {where}")
    cores = len(inventory.machine.cores)
    if options.on_cpu and options.workers > cores:
        notes.append(f"{options.workers} workers share {cores} CPU cores: expect them to be slow")
    open_ways = ", ".join(f"http://{address}" for address in options.upstreams if not address.is_loopback)
    if open_ways:
        notes.append(f"Keys and prompts go to {open_ways} in plain HTTP: whoever is on the way can read them")
    if inventory.tls_warning is not None:
        notes.append(inventory.tls_warning)
    return notes
