"""What the user asked for: frozen values, built once from flags, file, environment and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vllm_stack.address import LOOPBACK, TcpAddress
from vllm_stack.sizes import MIB

Device = Literal["auto", "cuda", "cpu"]
Policy = Literal["prefix", "session", "least-loaded", "round-robin", "random"]
Transport = Literal["tcp", "unix"]
Target = Literal["supervisord", "ray"]


@dataclass(frozen=True, slots=True)
class Options:
    """One model with its workers, and the stack around them; times are seconds, sizes bytes.

    Of a stack with several models each has options of its own. What a stack has once (doors, keys, policy,
    waits) is the same in all of them.
    """

    model: str
    # Names under which clients may ask for it, beside its own.
    aliases: tuple[str, ...] = ()
    out: Path = Path("out")
    workers: int = 1
    # How many there may become under load, on Ray; 0: their number is fixed.
    most_workers: int = 0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    revision: str | None = None
    target: Target = "supervisord"
    # Where other boxes reach the head of a Ray cluster; None: the cluster is this box.
    ray_host: str | None = None
    ray_port: int = 6379
    ray_dashboard_port: int = 8265
    device: Device = "auto"
    gpus: tuple[str, ...] | None = None
    worker_transport: Transport = "tcp"
    base_port: int = 5001
    host: str | None = None
    port: int = 8000
    admin_port: int = 9000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    api_keys: tuple[str, ...] = ()
    # Whether the door asks for a key although none is given here: named ones may come later.
    require_key: bool = False
    upstreams: tuple[TcpAddress, ...] = ()
    upstream_key_file: Path | None = None
    policy: Policy = "prefix"
    session_header: str = "x-session-id"
    proxy_processes: int | None = None
    open_routes: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = 64 * MIB
    max_inflight_per_worker: int | None = None
    queue_timeout: float = 10.0
    response_timeout: float = 900.0
    restart_delay: float = 30.0
    restart_delay_max: float = 0.0
    start_timeout: float = 1800.0
    start_stagger: str = "auto"
    wedge_timeout: float = 120.0
    drain_timeout: float = 15.0
    vllm_command: str = "vllm"
    allow_busy: bool = False
    # Those of "workers" and "tensor_parallel_size" that are left to us; the fields then hold no choice yet.
    automatic: frozenset[str] = frozenset()
    skip_checks: tuple[str, ...] = ()
    no_access_log: bool = False
    # Whether a systemd unit is written, too.
    systemd: bool = False
    vllm_args: tuple[str, ...] = ()
    # Workers of the models before it, and of all other models; see `numbered`.
    first_worker: int = 0
    other_workers: int = 0

    @property
    def on_cpu(self) -> bool:
        """Whether the workers run vLLM's CPU build; `auto` means GPUs."""
        return self.device == "cpu"

    @property
    def on_ray(self) -> bool:
        """Whether Ray runs the workers, as replicas, wherever it likes among the boxes that have joined."""
        return self.target == "ray"

    @property
    def spans_boxes(self) -> bool:
        """Whether workers may run on other boxes than this one."""
        return self.ray_host is not None

    @property
    def gpus_per_worker(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def gpus_needed(self) -> int:
        return self.workers * self.gpus_per_worker

    @property
    def all_workers(self) -> int:
        """The workers of the whole stack."""
        return self.workers + self.other_workers

    @property
    def worker_indices(self) -> range:
        """The numbers of its workers among all of the stack."""
        return range(self.first_worker, self.first_worker + self.workers)

    @property
    def worker_ports(self) -> tuple[int, ...]:
        """One port a worker; none when they listen on unix sockets, or Ray runs them."""
        if self.worker_transport == "unix" or self.on_ray:
            return ()
        return tuple(self.base_port + index for index in self.worker_indices)

    @property
    def scheme(self) -> str:
        """What the public door speaks."""
        return "http" if self.tls_cert is None else "https"

    @property
    def asks_key(self) -> bool:
        """Whether the door asks for a key by these options alone."""
        return self.require_key or bool(self.api_keys)

    @property
    def door_host(self) -> str:
        """The public door's address: where no key is asked for, on loopback unless a host was named."""
        if self.host is not None:
            return self.host
        return "0.0.0.0" if self.asks_key else LOOPBACK  # noqa: S104 - a door that asks for a key


def numbered(models: Sequence[Options]) -> tuple[Options, ...]:
    """Number the workers of all models of a stack, in the order of the models."""
    total = sum(one.workers for one in models)
    found, first = [], 0
    for one in models:
        found.append(replace(one, first_worker=first, other_workers=total - one.workers))
        first += one.workers
    return tuple(found)
