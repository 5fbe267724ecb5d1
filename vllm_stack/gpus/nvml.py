"""Asking NVML, which creates no CUDA context: looking takes no memory away.

Only programs of their own import this (`gpus.reader`, `worker.gpu_reader`), because a broken driver can
hang its caller for ever, or kill it. `gpus.driver` starts them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import psutil
import pynvml

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.box import GpuProcess

T = TypeVar("T")
NOT_HERE = "no such process is seen here: it is in a container, or has just ended"
# Letters of a command line that are shown.
_SHOWN = 80
# What no call can be answered after, the optional ones included.
_GONE = (pynvml.NVMLError_GpuIsLost, pynvml.NVMLError_ResetRequired)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Keep the driver open; raises `DriverTrouble` if there is none, or it does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound as error:
        raise DriverTrouble("no NVIDIA driver was found (libnvidia-ml.so.1 is missing)") from error
    except pynvml.NVMLError as error:
        raise DriverTrouble(f"the NVIDIA driver does not answer: {error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


@contextlib.contextmanager
def refused_as(what: str) -> Iterator[None]:
    """Raise what NVML refuses in here as `DriverTrouble`: `what`, and NVML's reason."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise DriverTrouble(f"{what}: {error}") from error


def told(ask: Callable[[], T], otherwise: T) -> T:
    """Give what NVML answers, or `otherwise` where it does not tell.

    Old drivers lack calls, consumer GPUs lack facts, and containers lack permissions. Raises
    `pynvml.NVMLError` only where the GPU itself is gone.
    """
    try:
        return ask()
    except _GONE:
        raise
    except pynvml.NVMLError:
        return otherwise


def find_gpu(token: str) -> Any:
    """Find a GPU by its index in PCI order, by the UUID of a MIG device, or by a UUID's beginning.

    CUDA takes a beginning that fits one GPU alone; NVML takes whole UUIDs. Raises `pynvml.NVMLError`.
    """
    if not token.startswith("GPU-"):
        if token.startswith("MIG-"):
            return pynvml.nvmlDeviceGetHandleByUUID(token)
        return pynvml.nvmlDeviceGetHandleByIndex(int(token))
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(token)
    except pynvml.NVMLError as error:
        handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        matches = [handle for handle in handles if uuid_of(handle).startswith(token)]
        if len(matches) != 1:
            raise error
        return matches[0]


def uuid_of(handle: Any) -> str:
    """Give the UUID of a GPU or MIG device; raises `pynvml.NVMLError`."""
    return str(pynvml.nvmlDeviceGetUUID(handle))


def name_of(handle: Any) -> str:
    """Give the model of a GPU or MIG device; raises `pynvml.NVMLError`."""
    return str(pynvml.nvmlDeviceGetName(handle))


def total_and_free(handle: Any) -> tuple[int, int]:
    """Give bytes as CUDA counts them; raises `pynvml.NVMLError`.

    A driver without the second version of the call (before 510) does not tell what it reserves, and
    the total is then too large by that (about half a GiB). A GPU without memory of its own (GB10 of
    DGX Spark) supports neither version: it has the machine's, and vLLM takes for free there what the
    system calls available (`MemorySnapshot.measure` in vllm/utils/mem_utils.py).
    """
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        return memory.total - memory.reserved, memory.free
    except pynvml.NVMLError:
        pass
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return memory.total, memory.free
    except pynvml.NVMLError_NotSupported:
        shared = psutil.virtual_memory()
        return shared.total, shared.available


def processes_on(handle: Any) -> tuple[GpuProcess, ...]:
    """Name who computes and who draws on a GPU or MIG device; nobody where the driver does not say.

    Who does both computes.
    """
    # By the names with a version: without it, a driver that lacks the call raises what is no NVMLError.
    drawing: list[Any] = told(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3(handle), [])
    computing: list[Any] = told(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle), [])
    found = {process.pid: (process.usedGpuMemory, False) for process in drawing}
    found |= {process.pid: (process.usedGpuMemory, True) for process in computing}
    return tuple(
        GpuProcess(pid, *who_runs_what(pid), memory, computes) for pid, (memory, computes) in found.items()
    )


def who_runs_what(pid: int) -> tuple[str | None, str]:
    """Give the user and the command line of a process, in one printable line.

    In a container with process numbers of its own it may be another one that has this number.
    """
    try:
        process = psutil.Process(pid)
        words = " ".join(process.cmdline()).split() or [process.name()]
        user = process.username()
    except psutil.NoSuchProcess:
        return None, NOT_HERE
    except psutil.Error:
        return None, "a process we may not look at"
    shown = "".join(letter if letter.isprintable() else "?" for letter in " ".join(words))
    return user, shown[:_SHOWN].rstrip()
