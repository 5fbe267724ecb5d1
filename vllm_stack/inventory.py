"""What the machine has, read once: GPUs, cores, memory, the model's config, the vLLM program."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import VllmCommandError
from vllm_stack.gpus.box import GpuBox
from vllm_stack.gpus.mask import MASK
from vllm_stack.gpus.nvml import read_gpus
from vllm_stack.model import Model, read_model
from vllm_stack.options import Options
from vllm_stack.vllm_command import VllmCommand, find_vllm


@dataclass(frozen=True, slots=True)
class Inventory:
    """Facts about this machine that a plan is made from; sizes in bytes."""

    model: Model
    vllm: VllmCommand | VllmCommandError
    gpus: GpuBox
    gpu_mask: str | None
    cores: tuple[int, ...]
    memory_total: int
    python: Path
    root: bool
    tls_warning: str | None = None


def take_inventory(options: Options) -> Inventory:
    """Read everything the plan needs; raises `ModelError` for a model that is none.

    A missing vLLM is noted, not raised: too few GPUs, say, is what the user should hear of first.
    """
    return Inventory(
        model=read_model(options.model, options.revision),
        vllm=_find_vllm(options.vllm_command),
        gpus=GpuBox(()) if options.device == "cpu" or not options.workers else read_gpus(),
        gpu_mask=os.environ.get(MASK),
        cores=tuple(sorted(os.sched_getaffinity(0))),
        memory_total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        python=Path(sys.executable),
        root=os.geteuid() == 0,
        tls_warning=_tls_warning(options),
    )


def _tls_warning(options: Options) -> str | None:
    if options.tls_cert is None or options.tls_key is None:
        return None
    from vllm_stack.tls_files import TlsFiles, expiry_warning  # loads OpenSSL, which few stacks need

    return expiry_warning(TlsFiles(options.tls_cert, options.tls_key))


def _find_vllm(command: str) -> VllmCommand | VllmCommandError:
    try:
        return find_vllm(command)
    except VllmCommandError as error:
        return error
