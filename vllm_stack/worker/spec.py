"""What a wrapper is told: the rendered worker-N.json as one frozen value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, parse_address
from vllm_stack.layout import failure_record, life_record, stopping_notice
from vllm_stack.leftovers import Identity


@dataclass(frozen=True, slots=True)
class Spec:
    """One worker: its command, its place, its waits (seconds)."""

    name: str
    address: Address
    argv: tuple[str, ...]
    env: dict[str, str]
    secret_env: dict[str, Path]
    box: Path
    state: Path
    title: str
    restart_delay: float
    settle: float
    stop_grace: float

    @property
    def failure(self) -> Path:
        return failure_record(self.state, self.name)

    @property
    def stopping(self) -> Path:
        """The notice to the proxy that this worker is about to stop."""
        return stopping_notice(self.state, self.name)

    @property
    def identity(self) -> Identity:
        return Identity(self.title, self.box, life_record(self.state, self.name))


def read_spec(path: Path) -> Spec:
    """Read a rendered spec; raises `ValueError` or `OSError` naming the file."""
    try:
        raw: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return Spec(
            name=raw["name"],
            address=parse_address(raw["address"]),
            argv=tuple(raw["argv"]),
            env=raw["env"],
            secret_env={name: Path(file) for name, file in raw["secret_env"].items()},
            box=Path(raw["box"]),
            state=Path(raw["state"]),
            title=raw["title"],
            restart_delay=raw["restart_delay"],
            settle=raw["settle"],
            stop_grace=raw["stop_grace"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a worker that this version rendered: {error!r}") from error
