"""The GPUs this stack may use: what NVML counts, and what CUDA_VISIBLE_DEVICES leaves of it."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass

from vllm_stack.errors import UsageError

_INDEX = re.compile(r"[0-9]+")
_GPU_TOKEN = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z-]+")
MASK = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML numbers it (PCI bus order), whatever CUDA_VISIBLE_DEVICES says."""

    index: int
    uuid: str
    name: str
    memory_total: int


@dataclass(frozen=True, slots=True)
class GpuBox:
    """All GPUs of the machine, or the sentence that says why none can be seen."""

    gpus: tuple[Gpu, ...]
    trouble: str | None = None


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
    )


def visible_tokens(mask: str | None, gpus: tuple[Gpu, ...]) -> tuple[str, ...]:
    """Give the tokens a worker's CUDA_VISIBLE_DEVICES may be built from, in order.

    An existing mask is the budget and its tokens are kept, never renumbered. The rules are CUDA's
    (programming guide, "CUDA Environment Variables") as torch applies them in
    `torch/cuda/__init__.py`: what follows the first invalid token does not count, and a duplicate
    empties the set. A UUID prefix is legal for CUDA but not for NVML, so it is completed.

    Raises `UsageError` for a mask that mixes indices and UUIDs, which CUDA leaves undefined.
    """
    if mask is None:
        return tuple(str(gpu.index) for gpu in gpus)
    tokens = [token.strip() for token in mask.split(",")] if mask.strip() else []
    valid: list[str] = []
    for token in tokens:
        known = _known_token(token, gpus)
        if known is None:
            break
        valid.append(known)
    if len({_INDEX.fullmatch(token) is None for token in valid}) > 1:
        raise UsageError(f"{MASK}={mask!r} mixes indices and UUIDs: use one kind")
    return tuple(valid) if len(set(valid)) == len(valid) else ()


def _known_token(token: str, gpus: tuple[Gpu, ...]) -> str | None:
    if _INDEX.fullmatch(token):
        return str(int(token)) if int(token) < len(gpus) else None
    if token.startswith("MIG-"):
        return token if _GPU_TOKEN.fullmatch(token) else None
    matches = [gpu.uuid for gpu in gpus if token.startswith("GPU-") and gpu.uuid.startswith(token)]
    return matches[0] if len(matches) == 1 else None


def parse_gpu_list(text: str) -> tuple[str, ...]:
    """Read `--gpus 0,1,4,5` (indices, or GPU-/MIG- UUIDs); the order is the user's.

    Raises `UsageError` for an empty list, another kind of word, or a GPU named twice.
    """
    tokens = tuple(token.strip() for token in text.split(","))
    for token in tokens:
        if not _GPU_TOKEN.fullmatch(token):
            raise UsageError(f"--gpus {text!r}: {token!r} is neither an index nor a GPU-/MIG- UUID")
    if len(set(tokens)) != len(tokens):
        raise UsageError(f"--gpus {text!r} names a GPU twice")
    return tokens
