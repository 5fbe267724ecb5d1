"""What the machine has, read once: GPUs, cores, memory, the model's config, the vLLM program."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.gpus import MASK, GpuBox, read_gpus
from vllm_stack.model import Model, read_model
from vllm_stack.options import Options
from vllm_stack.vllm_command import VllmCommand, find_vllm


@dataclass(frozen=True, slots=True)
class Inventory:
    """Facts about this machine that a plan is made from; sizes in bytes."""

    model: Model
    vllm: VllmCommand
    gpus: GpuBox
    gpu_mask: str | None
    cores: tuple[int, ...]
    memory_total: int
    memory_available: int
    python: Path
    root: bool


def take_inventory(options: Options) -> Inventory:
    """Read everything the plan needs; raises `ModelError` or `VllmCommandError` on the way."""
    import psutil

    memory = psutil.virtual_memory()
    return Inventory(
        model=read_model(options.model, options.revision),
        vllm=find_vllm(options.vllm_command),
        gpus=GpuBox(()) if options.device == "cpu" else read_gpus(),
        gpu_mask=os.environ.get(MASK),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        memory_total=memory.total,
        memory_available=memory.available,
        python=Path(sys.executable),
        root=os.geteuid() == 0,
    )
