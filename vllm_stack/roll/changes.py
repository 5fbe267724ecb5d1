"""What a new render changes of a running stack, and whether a roll can bring it about; all pure.

A roll changes one program after another while all the others go on. So it can change what a program does
(its model's revision, its options, keys, limits, the policy), but not what the programs must agree on: who
there is, where each listens, and which GPUs it has, which supervisord itself tells a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rendered:
    """The files that tell, stack.json and proxy.json, as values."""

    stack: Json
    proxy: Json


def obstacles(running: Rendered, rendered: Rendered) -> Iterator[str]:
    """Say what keeps a roll from bringing the render about, each in a few words; nothing if it can."""
    yield from _of_servers(_by_name(running.stack), _by_name(rendered.stack))
    yield from _of_models(running.stack["models"], rendered.stack["models"])
    for what, before, after in (
        ("the door", running.stack["door"]["port"], rendered.stack["door"]["port"]),
        ("the door's address", running.stack["door"]["host"], rendered.stack["door"]["host"]),
        ("the admin door", running.stack["admin_port"], rendered.stack["admin_port"]),
        ("the door's scheme", running.stack["door"]["scheme"], rendered.stack["door"]["scheme"]),
        ("the device", running.stack["device"], rendered.stack["device"]),
        ("the proxy's processes", running.proxy["processes"], rendered.proxy["processes"]),
        ("--drain-timeout", running.proxy["drain_timeout"], rendered.proxy["drain_timeout"]),
    ):
        if before != after:
            yield f"{what}: {before} -> {after}"


def _by_name(stack: Json) -> dict[str, Json]:
    return {server["name"]: server for server in (*stack["workers"], *stack["upstreams"])}


def _of_servers(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[str]:
    if before.keys() != after.keys():
        yield f"the servers: {', '.join(before) or 'none'} -> {', '.join(after) or 'none'}"
        return
    for name, server in before.items():
        for field in ("address", "gpus"):
            if server.get(field) != after[name].get(field):
                yield f"{name}: {_shown(server.get(field))} -> {_shown(after[name].get(field))}"


def _of_models(before: list[Json], after: list[Json]) -> Iterator[str]:
    if [model["servers"] for model in before] != [model["servers"] for model in after]:
        yield "which worker has which model"
        return
    for old, new in zip(before, after, strict=True):
        gone = [name for name in old["names"] if name not in new["names"]]
        if gone:
            yield f"the name {', '.join(gone)}, which clients may ask for (--served-model-name keeps it)"


def _shown(value: object) -> str:
    return f"GPUs {','.join(map(str, value)) or 'none'}" if isinstance(value, list) else str(value)
