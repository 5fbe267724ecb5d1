"""How much of a GPU is in use just now: its memory, and how busy it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.driver import ask_driver, nonsense


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """A GPU or MIG device, by its word in CUDA_VISIBLE_DEVICES; sizes in bytes, as CUDA counts them.

    `busy` is the percentage of the last moments in which something computed on it (NVML looks back a
    sixth of a second to a second); None where the driver does not tell, as of a MIG device. `trouble`
    says why nothing is known of the GPU.
    """

    token: str
    memory_used: int | None = None
    memory_total: int | None = None
    busy: int | None = None
    trouble: str | None = None


def read_usage(tokens: Sequence[str], timeout: float) -> tuple[GpuUsage, ...]:
    """Read these GPUs in their order; takes about 0.2 s, and `timeout` seconds at most.

    What one of them, or the driver, does not tell is its `trouble`; nothing is raised.
    """
    if not tokens:
        return ()
    try:
        told = ask_driver("vllm_stack.gpus.usage_reader", tokens, timeout)
        return _read(told)
    except DriverTrouble as trouble:
        return tuple(GpuUsage(token, trouble=str(trouble)) for token in tokens)


def _read(told: bytes) -> tuple[GpuUsage, ...]:
    try:
        return tuple(GpuUsage(**gpu) for gpu in json.loads(told))
    except (ValueError, TypeError) as error:
        raise nonsense(told) from error
