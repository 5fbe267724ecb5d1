"""What the proxy is told: the rendered proxy.json and the keys, as one frozen value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, TcpAddress, parse_address
from vllm_stack.keys.store import KeyPaths
from vllm_stack.layout import drain_order, stopping_notice
from vllm_stack.tls_files import TlsFiles
from vllm_stack.upstreams import read_upstream_keys


@dataclass(frozen=True, slots=True)
class Server:
    """One server to send to: a worker of ours, or an upstream, which runs elsewhere.

    `key` is what it asks for, `max_idle` how long (seconds) a connection to it is kept, `stopping`
    where a worker leaves word that it stops, `drained` where an operator orders that it gets nothing
    new, `model` the number of the model that it has, `gpus` those that the plan gave it.
    """

    name: str
    address: Address
    key: str | None
    max_idle: float
    stopping: Path | None
    model: int = 0
    drained: Path | None = None
    gpus: tuple[str, ...] = ()

    @property
    def remote(self) -> bool:
        return self.stopping is None


@dataclass(frozen=True, slots=True)
class KeySettings:
    """What clients are asked for: the `rendered` keys as SHA-256, and those in the file of named ones.

    Without either any key is good, unless one is `required` whatever there is.
    """

    rendered: tuple[bytes, ...]
    required: bool
    named: KeyPaths


@dataclass(frozen=True, slots=True)
class AccessLogSettings:
    """Where a line is written for every request, at how many bytes a new file begins, and how many stay."""

    path: Path
    most: int
    backups: int


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Sizes in bytes, times in seconds; `models` are the names of each, its own first."""

    admin_port: int
    # Where wrappers and verbs leave word of what they do (`layout`).
    state: Path
    tls: TlsFiles | None
    servers: tuple[Server, ...]
    models: tuple[tuple[str, ...], ...]
    policy: str
    session_header: str
    processes: int
    keys: KeySettings
    open_routes: tuple[str, ...]
    cors_origins: tuple[str, ...]
    max_body: int
    max_inflight: int | None
    queue_timeout: float
    response_timeout: float
    drain_timeout: float
    access_log: AccessLogSettings | None = None
    vllm_version: str | None = None

    @property
    def shape(self) -> object:
        """What the memory that all processes share, and their listeners, are made for."""
        servers = tuple((server.name, server.address, server.model) for server in self.servers)
        return servers, len(self.models), self.processes, self.admin_port, self.tls is None


def read_settings(path: Path) -> ProxySettings:
    """Read what `render` wrote; raises `OSError`, `ValueError` or `KeyError` for anything else."""
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    models = raw["models"]
    owners = {server: number for number, model in enumerate(models) for server in model["servers"]}
    return ProxySettings(
        admin_port=raw["admin_port"],
        state=Path(raw["state"]),
        tls=TlsFiles(Path(tls["certificate"]), Path(tls["key"])) if (tls := raw["tls"]) else None,
        servers=(*_workers(raw, owners), *_upstreams(raw, owners)),
        models=tuple(tuple(model["names"]) for model in models),
        policy=raw["policy"],
        session_header=raw["session_header"],
        processes=raw["processes"],
        keys=KeySettings(
            rendered=tuple(bytes.fromhex(digest) for digest in raw["client_keys"]),
            required=raw["require_key"],
            named=KeyPaths(Path(raw["named_keys"])),
        ),
        open_routes=tuple(raw["open_routes"]),
        cors_origins=tuple(raw["cors_origins"]),
        max_body=raw["max_body"],
        max_inflight=raw["max_inflight_per_worker"],
        queue_timeout=raw["queue_timeout"],
        response_timeout=raw["response_timeout"],
        drain_timeout=raw["drain_timeout"],
        access_log=AccessLogSettings(Path(log["path"]), log["max_bytes"], log["backups"])
        if (log := raw["access_log"])
        else None,
        vllm_version=raw["vllm_version"],
    )


def _workers(raw: dict[str, Any], owners: dict[str, int]) -> Iterator[Server]:
    key = Path(raw["internal_key"]).read_text("utf-8").strip()
    state = Path(raw["state"])
    for worker in raw["workers"]:
        name = worker["name"]
        address, notice = parse_address(worker["address"]), stopping_notice(state, name)
        order = drain_order(state, name)
        gpus = tuple(worker["gpus"])
        yield Server(name, address, key, raw["pool_idle"], notice, owners[name], order, gpus)


def _upstreams(raw: dict[str, Any], owners: dict[str, int]) -> Iterator[Server]:
    """Keys are read from where the operator keeps them: a new one holds after a restart of the proxy."""
    addresses = {u["name"]: parse_address(u["address"]) for u in raw["upstreams"]}
    remotes = {name: address for name, address in addresses.items() if isinstance(address, TcpAddress)}
    path = raw["upstream_keys"]
    keys = read_upstream_keys(Path(path), tuple(remotes.values())) if path else {}
    for name, address in remotes.items():
        order = drain_order(Path(raw["state"]), name)
        yield Server(name, address, keys.get(address), raw["upstream_idle"], None, owners[name], order)
