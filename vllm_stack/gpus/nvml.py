"""Reading the GPUs through NVML, which creates no CUDA context and imports no torch."""

from __future__ import annotations

import contextlib

from vllm_stack.gpus.box import Gpu, GpuBox


def read_gpus() -> GpuBox:
    """Count the GPUs through NVML, which creates no CUDA context and imports no torch."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError_LibraryNotFound:
        return GpuBox((), "no NVIDIA driver was found (libnvidia-ml.so.1 is missing)")
    except pynvml.NVMLError as error:
        return GpuBox((), f"the NVIDIA driver does not answer: {error}")
    try:
        return GpuBox(tuple(_read_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())))
    except pynvml.NVMLError as error:
        return GpuBox((), f"the NVIDIA driver could not describe its GPUs: {error}")
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read_gpu(index: int) -> Gpu:
    import pynvml

    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(handle),
        memory_total=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
        memory_free=pynvml.nvmlDeviceGetMemoryInfo(handle).free,
    )
