"""Options and inventory become one plan: every decision is made here, once, and purely.

Nothing below starts a process, reads a file or a clock. Derived waits are in `timings` with their
reasons; the templates repeat the reasons as comments.
"""

from __future__ import annotations

import math
import os.path
from dataclasses import dataclass, field
from pathlib import Path

from vllm_stack.address import Address, TcpAddress, UnixAddress
from vllm_stack.cpu_share import cpu_arguments, cpu_environment, split_cores
from vllm_stack.errors import InsufficientGpus, UsageError, VllmCommandError
from vllm_stack.gpus.mask import MASK, visible_tokens
from vllm_stack.in_force import fingerprint
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.model import Model, check_heads
from vllm_stack.options import Options
from vllm_stack.passthrough import accept
from vllm_stack.ports import PortUse, check_overlap
from vllm_stack.timings import Timings
from vllm_stack.vllm_command import VllmCommand

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One `vllm serve`: its place on the machine and what it is started with."""

    name: str
    address: Address
    gpus: tuple[str, ...]
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
    device: str
    host: str
    proxy_processes: int
    python: Path
    root: bool
    vllm_version: str | None
    engine: str
    notes: tuple[str, ...]

    @property
    def open_to_all(self) -> bool:
        """Any key is accepted, because none was configured."""
        return not self.options.api_keys

    @property
    def door_address(self) -> str:
        """The public door as gunicorn binds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.options.port}"

    @property
    def port_uses(self) -> tuple[PortUse, ...]:
        return port_uses(self.options)


def make_plan(options: Options, inventory: Inventory) -> Plan:
    """Decide the whole stack.

    Raises `InsufficientGpus`, `ModelError`, `PortError`, `OutputError` or `UsageError` with one
    sentence that names the value and the way out.
    """
    layout = Layout.at(options.out)
    _check_upstreams(options)
    check_overlap(port_uses(options))
    check_heads(inventory.model, options.tensor_parallel_size)
    device = "cpu" if options.device == "cpu" else "cuda"
    slices = _gpu_slices(options, inventory) if device == "cuda" else [()] * options.workers
    cores = split_cores(inventory.cores, options.workers) if device == "cpu" else [()] * options.workers
    _check_delays(options)
    timings = Timings(options.restart_delay, options.drain_timeout)
    args = accept(options.vllm_args)
    vllm = _vllm(options, inventory)
    return Plan(
        layout=layout,
        options=options,
        timings=timings,
        workers=tuple(
            WorkerPlan(
                name=(name := f"worker-{index}"),
                address=address,
                gpus=slices[index],
                cores=cores[index],
                argv=_argv(
                    vllm, inventory.model, options, timings, address, device, inventory.memory_total, args
                ),
                env=_environment(options, timings, layout, name, cores[index]),
            )
            for index, address in enumerate(_addresses(options, layout))
        ),
        device=device,
        host=options.door_host,
        proxy_processes=options.proxy_processes or _proxy_processes(options, len(inventory.cores)),
        python=inventory.python,
        root=inventory.root,
        vllm_version=vllm.version,
        engine=_engine(vllm, options, device, args),
        notes=tuple(_notes(options, inventory, vllm, device)),
    )


def _check_upstreams(options: Options) -> None:
    """Refuse a stack that would send to nobody, or to itself."""
    if not options.workers and not options.upstreams:
        raise UsageError(
            "--workers 0 leaves nobody to send to: name at least one --upstream http://host:port"
        )
    own = {options.port: "--port", options.admin_port: "--admin-port"}
    own |= dict.fromkeys(options.worker_ports, "--base-port")
    for address in options.upstreams:
        if address.is_loopback and address.port in own:
            raise UsageError(
                f"--upstream http://{address} is this stack itself ({own[address.port]} {address.port}): "
                "leave it out, or name another box"
            )


def _check_delays(options: Options) -> None:
    if 0 < options.restart_delay_max < options.restart_delay:
        raise UsageError(
            f"--restart-delay-max {options.restart_delay_max:g} is shorter than --restart-delay "
            f"{options.restart_delay:g}: make it longer, or leave it out for a constant delay"
        )


def _engine(vllm: VllmCommand, options: Options, device: str, args: tuple[str, ...]) -> str:
    """Give a short name for what every worker runs: the same name, the same caches of vLLM."""
    what = [*vllm.argv, vllm.version, options.model, options.revision, options.tensor_parallel_size, device]
    return fingerprint(str(word).encode() for word in (*what, *args))


def _vllm(options: Options, inventory: Inventory) -> VllmCommand:
    """Give the vLLM the workers run; where there are none, none is needed."""
    if not options.workers:
        return VllmCommand((), None)
    if isinstance(inventory.vllm, VllmCommandError):
        raise inventory.vllm
    return inventory.vllm


def port_uses(options: Options) -> tuple[PortUse, ...]:
    """Name every port of the stack with its owner and the option that moves it."""
    workers = (
        PortUse(port, LOOPBACK, f"worker-{index}", "--base-port")
        for index, port in enumerate(options.worker_ports)
    )
    return (
        PortUse(options.port, options.door_host, "the proxy", "--port"),
        PortUse(options.admin_port, LOOPBACK, "the admin door", "--admin-port"),
        *workers,
    )


def _addresses(options: Options, layout: Layout) -> list[Address]:
    """Give each worker its place to listen: a port on loopback, or a socket in a directory of ours."""
    if options.worker_transport == "unix":
        sockets = (layout.worker_socket(f"worker-{index}") for index in range(options.workers))
        return [UnixAddress(str(path)) for path in sockets]
    return [TcpAddress(LOOPBACK, port) for port in options.worker_ports]


def _listening(address: Address) -> list[str]:
    """Give vLLM's options for where it listens; with `--uds` it knows no port at all."""
    if isinstance(address, UnixAddress):
        return ["--uds", address.path]
    return ["--host", address.host, "--port", str(address.port)]


def _argv(
    vllm: VllmCommand,
    model: Model,
    options: Options,
    timings: Timings,
    address: Address,
    device: str,
    memory_total: int,
    args: tuple[str, ...],
) -> tuple[str, ...]:
    argv = [*vllm.argv, "serve", model.name, *_listening(address)]
    argv += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    if options.revision:
        argv += ["--revision", options.revision]
    # 0 would abort what is in flight at the first TERM; the engine drains instead.
    argv += ["--shutdown-timeout", str(math.ceil(timings.drain_timeout))]
    # /load is the only honest count of requests in flight when an engine hangs. Access logs go
    # through supervisord's one reader thread: a slow disk there would stall the server.
    argv += ["--enable-server-load-tracking", "--disable-uvicorn-access-log"]
    if device == "cpu":
        argv += cpu_arguments(options.workers, memory_total, args)
    return (*argv, *args)


def _environment(
    options: Options,
    timings: Timings,
    layout: Layout,
    name: str,
    cores: tuple[int, ...],
) -> dict[str, str]:
    env = {
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(timings.worker_keep_alive),
        "VLLM_PROCESS_NAME_PREFIX": layout.process_title(name),
    }
    # vLLM's sockets lie in the worker's own directory instead of /tmp, where stopped engines leave
    # them; a socket's path holds 107 bytes, of which vLLM's names take 37.
    box = str(layout.box(name))
    if len(box) <= 70:
        env["VLLM_RPC_BASE_PATH"] = box
        # Whatever else a killed server leaves among temporary files, the next start removes with it.
        env["TMPDIR"] = os.path.join(box, "tmp")
    if cores:
        env |= cpu_environment(cores, options.tensor_parallel_size)
    return env


def _proxy_processes(options: Options, cores: int) -> int:
    """Choose by what can come and what can be spared: one for two servers, on an eighth of the cores.

    A process moves some 30,000 streamed events a second (the README says what one costs); two
    servers with 256 streams of 40 tokens a second each make 20,000. Where no model runs, half of
    the cores will do.
    """
    servers = options.workers + len(options.upstreams)
    to_spare = cores // (8 if options.workers else 2)
    return max(1, min(math.ceil(servers / 2), to_spare))


def _gpu_slices(options: Options, inventory: Inventory) -> list[tuple[str, ...]]:
    tokens = options.gpus or visible_tokens(inventory.gpu_mask, inventory.gpus.gpus)
    size = options.tensor_parallel_size
    if len(tokens) < options.gpus_needed:
        raise InsufficientGpus(
            f"Insufficient GPUs: Required {options.gpus_needed}, but only {len(tokens)} are available. "
            "Please adjust '--tensor-parallel-size' or '--workers'" + _why_so_few(options, inventory)
        )
    if size > 1 and any(token.startswith("MIG-") for token in tokens):
        raise UsageError(
            f"--tensor-parallel-size {size} cannot use MIG devices: CUDA gives a process one of them"
        )
    return [tokens[start : start + size] for start in range(0, options.gpus_needed, size)]


def _why_so_few(options: Options, inventory: Inventory) -> str:
    if options.gpus is not None:
        return f" (--gpus {','.join(options.gpus)})"
    if inventory.gpus.trouble:
        return (
            f" ({inventory.gpus.trouble}; '--device cpu' runs vLLM's CPU build, "
            "'--gpus 0,1' names GPUs without asking the driver)"
        )
    if inventory.gpu_mask is not None:
        return f" ({MASK}={inventory.gpu_mask!r} is respected; the box has {len(inventory.gpus.gpus)})"
    return ""


def _notes(options: Options, inventory: Inventory, vllm: VllmCommand, device: str) -> list[str]:
    """Say what a user should know before starting, and nothing they need not."""
    notes = []
    if not options.api_keys:
        where = (
            "the door opens on loopback only (--api-key-file FILE opens it to the network)"
            if options.host is None
            else f"and it opens on {options.host}: anyone who reaches it can use the model"
        )
        notes.append(f"No API key: any key is accepted; {where}")
    if inventory.model.attention_heads is None and options.tensor_parallel_size > 1:
        notes.append(
            f"{inventory.model.name} is not on this machine: whether its attention heads divide by "
            f"{options.tensor_parallel_size} is left to vLLM"
        )
    if device == "cpu" and options.workers > len(inventory.cores):
        notes.append(
            f"{options.workers} workers share {len(inventory.cores)} CPU cores: expect them to be slow"
        )
    open_ways = ", ".join(f"http://{address}" for address in options.upstreams if not address.is_loopback)
    if open_ways:
        notes.append(f"Keys and prompts go to {open_ways} in plain HTTP: whoever is on the way can read them")
    if inventory.tls_warning is not None:
        notes.append(inventory.tls_warning)
    if vllm.argv and vllm.version is None:
        notes.append(f"The version of {vllm.argv[0]} could not be read")
    return notes
