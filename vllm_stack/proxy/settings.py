"""What the proxy is told: the rendered proxy.json and the keys, as one frozen value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, parse_address
from vllm_stack.layout import stopping_notice


@dataclass(frozen=True, slots=True)
class WorkerAddress:
    """One vLLM server to send to."""

    name: str
    address: Address
    stopping: Path


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """Sizes in bytes, times in seconds; `client_keys` are SHA-256 digests, none means any key."""

    admin_port: int
    workers: tuple[WorkerAddress, ...]
    policy: str
    session_header: str
    processes: int
    client_keys: tuple[bytes, ...]
    internal_key: str
    open_routes: tuple[str, ...]
    max_body: int
    response_timeout: float
    pool_idle: float
    drain_timeout: float


def read_settings(path: Path) -> ProxySettings:
    """Read what `render` wrote; raises `OSError`, `ValueError` or `KeyError` for anything else."""
    raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
    state = Path(raw["state"])
    return ProxySettings(
        admin_port=raw["admin_port"],
        workers=tuple(
            WorkerAddress(w["name"], parse_address(w["address"]), stopping_notice(state, w["name"]))
            for w in raw["workers"]
        ),
        policy=raw["policy"],
        session_header=raw["session_header"],
        processes=raw["processes"],
        client_keys=tuple(bytes.fromhex(digest) for digest in raw["client_keys"]),
        internal_key=Path(raw["internal_key"]).read_text("utf-8").strip(),
        open_routes=tuple(raw["open_routes"]),
        max_body=raw["max_body"],
        response_timeout=raw["response_timeout"],
        pool_idle=raw["pool_idle"],
        drain_timeout=raw["drain_timeout"],
    )
