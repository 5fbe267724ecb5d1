"""What a wrapper is told: the rendered worker-N.json as one frozen value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.address import Address, parse_address
from vllm_stack.layout import (
    failure_history,
    failure_record,
    life_record,
    lives_record,
    phase_note,
    shared_memory_record,
    stopping_notice,
)
from vllm_stack.leftovers.processes import Identity
from vllm_stack.leftovers.shared_memory import SharedMemory
from vllm_stack.worker.liveness import Limits
from vllm_stack.worker.probe import HEALTH
from vllm_stack.worker.turn import Stagger

VLLM = "vLLM"


@dataclass(frozen=True, slots=True)
class Spec:
    """One worker: its command, its place, its waits (seconds); `device` is "cpu", "cuda" or "rocm"."""

    name: str
    address: Address
    argv: tuple[str, ...]
    env: dict[str, str]
    secret_env: dict[str, Path]
    box: Path
    state: Path
    log: Path
    evidence: Path
    title: str
    gpus: tuple[str, ...]
    # CPU cores its server may run on; none: all.
    cores: tuple[int, ...]
    admin_port: int
    gpu_patience: float
    restart_delay: float
    restart_delay_max: float
    settle: float
    stop_grace: float
    limits: Limits
    stagger: Stagger
    device: str = "cuda"
    # What it is that runs, for whoever reads of it.
    what: str = VLLM
    # Where it says whether it is well.
    health: str = HEALTH

    @property
    def failure(self) -> Path:
        return failure_record(self.state, self.name)

    @property
    def history(self) -> Path:
        return failure_history(self.state, self.name)

    @property
    def lives(self) -> Path:
        return lives_record(self.state, self.name)

    @property
    def phase(self) -> Path:
        return phase_note(self.state, self.name)

    @property
    def memory(self) -> SharedMemory:
        return SharedMemory(shared_memory_record(self.state, self.name))

    @property
    def note_every(self) -> float:
        """Seconds between two notes of what is in /dev/shm: Ray makes new engines within one life."""
        return 60.0 if self.what == VLLM else 15.0

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
            log=Path(raw["log"]),
            evidence=Path(raw["evidence"]),
            title=raw["title"],
            gpus=tuple(raw["gpus"]),
            cores=tuple(raw["cores"]),
            admin_port=raw["admin_port"],
            gpu_patience=raw["gpu_patience"],
            restart_delay=raw["restart_delay"],
            restart_delay_max=raw["restart_delay_max"],
            settle=raw["settle"],
            stop_grace=raw["stop_grace"],
            limits=Limits(raw["start_timeout"], raw["wedge_timeout"]),
            stagger=Stagger(raw["start_stagger"], raw["engine"]),
            device=raw["device"],
            what=raw.get("what", VLLM),
            health=raw.get("health", HEALTH),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a worker that this version rendered: {error!r}") from error
