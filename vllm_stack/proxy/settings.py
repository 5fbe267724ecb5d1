"""What the proxy is told: the rendered proxy.json and the keys, as one frozen value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, TcpAddress, parse_address
from vllm_stack.layout import stopping_notice
from vllm_stack.tls_files import TlsFiles
from vllm_stack.upstreams import read_upstream_keys


@dataclass(frozen=True, slots=True)
class Server:
    """One server to send to: a worker of ours, or an upstream, which runs elsewhere.

    `key` is what it asks for, `max_idle` how long (seconds) a connection to it is kept, `stopping`
    where a worker leaves word that it stops, `model` the number of the model that it has.
    """

    name: str
    address: Address
    key: str | None
    max_idle: float
    stopping: Path | None
    model: int = 0

    @property
    def remote(self) -> bool:
        return self.stopping is None


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Sizes in bytes, times in seconds; `client_keys` are SHA-256 digests, none means any key.

    `models` are the names of each, its own first.
    """

    admin_port: int
    tls: TlsFiles | None
    servers: tuple[Server, ...]
    models: tuple[tuple[str, ...], ...]
    policy: str
    session_header: str
    processes: int
    client_keys: tuple[bytes, ...]
    open_routes: tuple[str, ...]
    cors_origins: tuple[str, ...]
    max_body: int
    max_inflight: int | None
    queue_timeout: float
    response_timeout: float
    drain_timeout: float


def read_settings(path: Path) -> ProxySettings:
    """Read what `render` wrote; raises `OSError`, `ValueError` or `KeyError` for anything else."""
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    models = raw["models"]
    owners = {server: number for number, model in enumerate(models) for server in model["servers"]}
    return ProxySettings(
        admin_port=raw["admin_port"],
        tls=TlsFiles(Path(tls["certificate"]), Path(tls["key"])) if (tls := raw["tls"]) else None,
        servers=(*_workers(raw, owners), *_upstreams(raw, owners)),
        models=tuple(tuple(model["names"]) for model in models),
        policy=raw["policy"],
        session_header=raw["session_header"],
        processes=raw["processes"],
        client_keys=tuple(bytes.fromhex(digest) for digest in raw["client_keys"]),
        open_routes=tuple(raw["open_routes"]),
        cors_origins=tuple(raw["cors_origins"]),
        max_body=raw["max_body"],
        max_inflight=raw["max_inflight_per_worker"],
        queue_timeout=raw["queue_timeout"],
        response_timeout=raw["response_timeout"],
        drain_timeout=raw["drain_timeout"],
    )


def _workers(raw: dict[str, Any], owners: dict[str, int]) -> Iterator[Server]:
    key = Path(raw["internal_key"]).read_text("utf-8").strip()
    state = Path(raw["state"])
    for worker in raw["workers"]:
        name = worker["name"]
        address, notice = parse_address(worker["address"]), stopping_notice(state, name)
        yield Server(name, address, key, raw["pool_idle"], notice, owners[name])


def _upstreams(raw: dict[str, Any], owners: dict[str, int]) -> Iterator[Server]:
    """Keys are read from where the operator keeps them: a new one holds after a restart of the proxy."""
    addresses = {u["name"]: parse_address(u["address"]) for u in raw["upstreams"]}
    remotes = {name: address for name, address in addresses.items() if isinstance(address, TcpAddress)}
    path = raw["upstream_keys"]
    keys = read_upstream_keys(Path(path), tuple(remotes.values())) if path else {}
    for name, address in remotes.items():
        yield Server(name, address, keys.get(address), raw["upstream_idle"], None, owners[name])
