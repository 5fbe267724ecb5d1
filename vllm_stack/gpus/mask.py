"""Which GPUs this stack may use: what CUDA_VISIBLE_DEVICES leaves of them, and what --gpus names."""

from __future__ import annotations

import re

from vllm_stack.errors import UsageError
from vllm_stack.gpus.box import Gpu

_INDEX = re.compile(r"[0-9]+")
_GPU_TOKEN = re.compile(r"[0-9]+|(GPU|MIG)-[0-9A-Za-z-]+")
MASK = "CUDA_VISIBLE_DEVICES"


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
