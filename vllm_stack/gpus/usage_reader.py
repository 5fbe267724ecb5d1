"""Ask NVML what is in use of GPUs: `python -m vllm_stack.gpus.usage_reader TOKEN...`.

Prints a JSON array of what `usage.GpuUsage` has.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

import pynvml

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.nvml import find_gpu, refused_as, session, told, total_and_free
from vllm_stack.gpus.usage import GpuUsage
from vllm_stack.program import die_with_parent


def read_here(tokens: Sequence[str]) -> list[GpuUsage]:
    """Read these GPUs in this process; one that cannot be read says so and hides no other."""
    try:
        with session():
            return [_read_gpu(token) for token in tokens]
    except DriverTrouble as trouble:
        return [GpuUsage(token, trouble=str(trouble)) for token in tokens]


def _read_gpu(token: str) -> GpuUsage:
    try:
        with refused_as("it cannot be read"):
            handle = find_gpu(token)
            total, free = total_and_free(handle)
            busy = told(lambda: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu), None)
            return GpuUsage(token, total - free, total, busy)
    except DriverTrouble as trouble:
        return GpuUsage(token, trouble=str(trouble))


def main(tokens: list[str]) -> int:
    """Print what there is to say of `tokens`; gives the exit code."""
    die_with_parent(signal.SIGKILL)
    print(json.dumps([asdict(usage) for usage in read_here(tokens)]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
