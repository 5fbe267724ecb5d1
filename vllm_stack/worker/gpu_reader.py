"""Ask NVML for the memory of GPUs: `python -m vllm_stack.worker.gpu_reader TOKEN...`.

Prints one JSON object: `{"gpus": [...]}` as `gpu_memory.GpuMemory` has it, or `{"trouble": "..."}`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.box import GpuProcess
from vllm_stack.gpus.nvml import find_gpu, name_of, processes_on, refused_as, session, total_and_free
from vllm_stack.program import die_with_parent
from vllm_stack.worker.gpu_memory import GpuMemory, Holder, label


def read_memory(tokens: Sequence[str]) -> tuple[GpuMemory, ...]:
    """Read the memory of these GPUs in this process.

    Raises `DriverTrouble`, naming the GPU, if the driver does not tell one of them.
    """
    with session():
        return tuple(_read_gpu(token) for token in tokens)


def _read_gpu(token: str) -> GpuMemory:
    with refused_as(f"the memory of {label(token)} cannot be read"):
        handle = find_gpu(token)
        total, free = total_and_free(handle)
        holders = tuple(
            Holder(process.pid, process.memory, _who(process)) for process in processes_on(handle)
        )
        return GpuMemory(token, name_of(handle), total, free, holders)


def _who(process: GpuProcess) -> str:
    """Say whose process it is and what runs in it; ours are known by their title."""
    if process.user is None or process.command.startswith("vllm-stack:"):
        return process.command
    return f"user {process.user}: {process.command}"


def main(tokens: list[str]) -> int:
    """Print what there is to say of `tokens`; gives the exit code."""
    die_with_parent(signal.SIGKILL)
    try:
        answer: dict[str, Any] = {"gpus": [asdict(gpu) for gpu in read_memory(tokens)]}
    except DriverTrouble as trouble:
        answer = {"trouble": str(trouble)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
