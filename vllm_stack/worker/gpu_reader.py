"""Ask NVML for the memory of GPUs: `python -m vllm_stack.worker.gpu_reader TOKEN...`.

Prints one JSON object: `{"gpus": [...]}` as `gpu_memory.GpuMemory` has it, or `{"trouble": "..."}`.
NVML creates no CUDA context, so looking takes no memory away.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import psutil

from vllm_stack.errors import GpuMemoryUnknown
from vllm_stack.program import die_with_parent
from vllm_stack.worker.gpu_memory import GpuMemory, Holder, label

NOT_HERE = "no such process is seen here: it is in a container, or has just ended"
# Letters of a holder's command line that are shown.
_SHOWN = 80


def read_memory(tokens: Sequence[str]) -> tuple[GpuMemory, ...]:
    """Read the memory of these GPUs in this process.

    Raises `GpuMemoryUnknown`, naming the GPU, if the driver does not tell one of them.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise GpuMemoryUnknown(f"the NVIDIA driver does not answer: {error}") from error
    try:
        return tuple(_read_gpu(token) for token in tokens)
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read_gpu(token: str) -> GpuMemory:
    import pynvml

    try:
        handle = _handle(token)
        total, free = _total_and_free(handle)
        name = str(pynvml.nvmlDeviceGetName(handle))
    except pynvml.NVMLError as error:
        raise GpuMemoryUnknown(f"the memory of {label(token)} cannot be read: {error}") from error
    return GpuMemory(token, name, total, free, _holders(handle))


def _handle(token: str) -> Any:
    """Find a GPU by its index in PCI order, by the UUID of a MIG device, or by a UUID's beginning.

    CUDA takes a beginning that fits one GPU alone; NVML takes whole UUIDs.
    """
    import pynvml

    if not token.startswith("GPU-"):
        if token.startswith("MIG-"):
            return pynvml.nvmlDeviceGetHandleByUUID(token)
        return pynvml.nvmlDeviceGetHandleByIndex(int(token))
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(token)
    except pynvml.NVMLError as error:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        matches = [handle for handle in handles if pynvml.nvmlDeviceGetUUID(handle).startswith(token)]
        if len(matches) != 1:
            raise error
        return matches[0]


def _total_and_free(handle: Any) -> tuple[int, int]:
    """Give bytes as CUDA counts them; a driver without the second version of the call (before 510)
    does not tell what it reserves, and the total is then too large by that (about half a GiB)."""
    import pynvml

    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return memory.total - memory.reserved, memory.free
    except pynvml.NVMLError:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return memory.total, memory.free


def _holders(handle: Any) -> tuple[Holder, ...]:
    """Name who computes and who draws on the GPU; nobody where the driver does not say."""
    import pynvml

    found: dict[int, int | None] = {}
    ways: list[Callable[[Any], list[Any]]] = [
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
        pynvml.nvmlDeviceGetComputeRunningProcesses,
    ]
    for ask in ways:
        with contextlib.suppress(pynvml.NVMLError):
            found |= {process.pid: process.usedGpuMemory for process in ask(handle)}
    return tuple(Holder(pid, size, describe_process(pid)) for pid, size in found.items())


def describe_process(pid: int) -> str:
    """Say in one line whose process `pid` is and what runs in it; ours are known by their title.

    In a container with process numbers of its own it may be another one that has this number.
    """
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline()).split() or [process.name()]
        user = process.username()
    except psutil.NoSuchProcess:
        return NOT_HERE
    except psutil.Error:
        return "a process we may not look at"
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(words))[:_SHOWN].rstrip()
    return shown if shown.startswith("vllm-stack:") else f"user {user}: {shown}"


def main(tokens: list[str]) -> int:
    """Print what there is to say of `tokens`; gives the exit code."""
    die_with_parent(signal.SIGKILL)
    try:
        answer: dict[str, Any] = {"gpus": [asdict(gpu) for gpu in read_memory(tokens)]}
    except GpuMemoryUnknown as error:
        answer = {"trouble": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
