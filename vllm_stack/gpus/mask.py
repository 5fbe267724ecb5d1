"""Which GPUs this stack may use: what CUDA_VISIBLE_DEVICES leaves of them, and what --gpus names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vllm_stack.errors import UsageError
from vllm_stack.gpus.box import Gpu, GpuBox, MigDevice

MASK = "CUDA_VISIBLE_DEVICES"
# CUDA reads an index as C's strtoul does: what follows the digits does not count.
_LEADING_INDEX = re.compile(r"\+?([0-9]+)")
_INDEX = re.compile(r"[0-9]+")
# How drivers before 470 call a MIG device: its GPU, its GPU instance and its compute instance.
_OLD_MIG = re.compile(r"MIG-(GPU-[0-9A-Za-z-]+)/[0-9]+/[0-9]+")
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Named:
    """What a token names: `token` with a UUID completed, its GPU, and the MIG device that CUDA uses of it.

    `mig` is None for a whole GPU, and where the driver does not tell which MIG device is meant.
    """

    token: str
    gpu: Gpu
    mig: MigDevice | None = None

    @property
    def is_mig(self) -> bool:
        """CUDA takes it for a MIG device: it is one, or a GPU that is cut into such."""
        return self.gpu.mig_enabled or self.mig is not None


def visible_tokens(mask: str | None, box: GpuBox) -> tuple[str, ...]:
    """Give the tokens a worker's CUDA_VISIBLE_DEVICES may be built from, in order.

    An existing mask is the budget and its tokens are kept, never renumbered. The rules are CUDA's
    (programming guide, 5.2.1.1 "CUDA_VISIBLE_DEVICES") as torch applies them in `torch/cuda/__init__.py`,
    `_parse_visible_devices`: what follows the first invalid token does not count, and a duplicate
    empties the set. A UUID prefix is legal for CUDA but not for NVML, so it is completed. Without a
    mask, a GPU with MIG enabled is replaced by its MIG devices, as CUDA cannot use it whole.

    Raises `UsageError` for a mask that mixes indices, GPU- and MIG- UUIDs, which CUDA leaves undefined.
    """
    if mask is None:
        return tuple(token for gpu in box.gpus for token in _tokens_of(gpu))
    valid: list[str] = []
    for word in mask.split(","):
        named = find(_as_index(word.strip()), box)
        if named is None:
            break
        valid.append(named.token)
    if len({_kind(token) for token in valid}) > 1:
        raise UsageError(
            f"{MASK}={mask!r} mixes indices, GPU- and MIG- UUIDs: use one kind, or name the GPUs with --gpus"
        )
    return tuple(valid) if len(set(valid)) == len(valid) else ()


def find(token: str, box: GpuBox) -> Named | None:
    """Find what a token of the mask or of --gpus names; None if that is nothing, or not one thing alone.

    CUDA takes the beginning of a GPU's UUID, but a MIG device's UUID only whole.
    """
    if _INDEX.fullmatch(token):
        index = _canonical(token)
        return next((_named(index, gpu) for gpu in box.gpus if str(gpu.index) == index), None)
    if token.startswith("MIG-"):
        return _find_mig(token, box)
    matches = [gpu for gpu in box.gpus if token.startswith("GPU-") and gpu.uuid.startswith(token)]
    return _named(matches[0].uuid, matches[0]) if len(matches) == 1 else None


def parse_gpu_list(text: str) -> tuple[str, ...]:
    """Read `--gpus 0,1,4,5` (indices, or GPU-/MIG- UUIDs); the order is the user's.

    Raises `UsageError` for an empty list, another kind of word, or a GPU named twice.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not any(kind.fullmatch(word) for kind in (_INDEX, _UUID, _OLD_MIG)):
            raise UsageError(f"--gpus {text!r}: {word!r} is neither an index nor a GPU-/MIG- UUID")
    tokens = tuple(_canonical(word) if _INDEX.fullmatch(word) else word for word in words)
    if len(set(tokens)) != len(tokens):
        raise UsageError(f"--gpus {text!r} names a GPU twice")
    return tokens


def _tokens_of(gpu: Gpu) -> tuple[str, ...]:
    return tuple(mig.uuid for mig in gpu.migs) if gpu.mig_enabled else (str(gpu.index),)


def _named(token: str, gpu: Gpu) -> Named:
    """CUDA gives a process the first MIG device of a GPU that is named whole."""
    return Named(token, gpu, gpu.migs[0] if gpu.mig_enabled and gpu.migs else None)


def _find_mig(token: str, box: GpuBox) -> Named | None:
    whole = next((Named(token, gpu, mig) for gpu in box.gpus for mig in gpu.migs if mig.uuid == token), None)
    old = _OLD_MIG.fullmatch(token)
    if whole is not None or old is None:
        return whole
    return next((Named(token, gpu) for gpu in box.gpus if gpu.mig_enabled and gpu.uuid == old[1]), None)


def _as_index(word: str) -> str:
    leading = _LEADING_INDEX.match(word)
    return leading[1] if leading else word


def _canonical(digits: str) -> str:
    """Leave out leading zeros; without `int`, which refuses thousands of digits."""
    return digits.lstrip("0") or "0"


def _kind(token: str) -> str:
    return token[:4] if token.startswith(("GPU-", "MIG-")) else "index"
