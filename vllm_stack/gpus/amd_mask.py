"""Which AMD GPUs this stack may use: ROCr filters them first, and HIP counts in what that leaves.

A worker is pinned by HIP_VISIBLE_DEVICES, with indices into what ROCR_VISIBLE_DEVICES leaves; that mask
stays as it was. CUDA_VISIBLE_DEVICES is another name of HIP's mask, which HIP and vLLM heed where HIP's own
is empty or not set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vllm_stack.errors import UsageError
from vllm_stack.gpus.box import Gpu, GpuBox, Link
from vllm_stack.gpus.mask import MASK, find

ROCR_MASK = "ROCR_VISIBLE_DEVICES"
HIP_MASK = "HIP_VISIBLE_DEVICES"
# What strtol takes for a whole number, its base told by how it begins.
_NUMBER = re.compile(r"[+-]?(?:0X[0-9A-F]+|[0-9]+)")


def left_by_rocr(masks: Mapping[str, str], box: GpuBox) -> GpuBox:
    """Give the box as HIP sees and numbers it: what ROCR_VISIBLE_DEVICES leaves, in its order.

    The rules are those of `RvdFilter` in ROCR-Runtime (core/runtime/amd_filter_device.cpp): indices, or
    beginnings of UUIDs in any case, up to the first word that is neither, fits several, or names a GPU
    again; none for an empty mask. NVIDIA's GPUs are left as they are.
    """
    if box.vendor != "amd" or ROCR_MASK not in masks:
        return box
    left: list[Gpu] = []
    for word in masks[ROCR_MASK].split(","):
        gpu = _named_to_rocr(word.strip().upper(), box.gpus)
        if gpu is None or gpu in left:
            break
        left.append(gpu)
    places = {gpu.index: place for place, gpu in enumerate(left)}
    return replace(
        box,
        gpus=tuple(replace(gpu, index=place) for place, gpu in enumerate(left)),
        links=tuple(
            _renumbered(link, places) for link in box.links if {link.one, link.other} <= places.keys()
        ),
    )


def _renumbered(link: Link, places: Mapping[int, int]) -> Link:
    one, other = sorted((places[link.one], places[link.other]))
    return Link(one, other, link.way)


def _named_to_rocr(word: str, gpus: Sequence[Gpu]) -> Gpu | None:
    if word.startswith("GPU-"):
        matches = [gpu for gpu in gpus if len(word) > len("GPU-") and gpu.uuid.upper().startswith(word)]
        return matches[0] if len(matches) == 1 else None
    if not _NUMBER.fullmatch(word) or len(word) > 20:
        return None
    digits = word.lstrip("+-")
    base = 16 if digits.startswith("0X") else 8 if digits.startswith("0") else 10
    try:
        index = int(word, base)
    except ValueError:  # an 8 or 9 among octal digits
        return None
    return next((gpu for gpu in gpus if gpu.index == index), None)


def hip_tokens(masks: Mapping[str, str], box: GpuBox) -> tuple[str, ...]:
    """Give the indices a worker's HIP_VISIBLE_DEVICES may be built from, in order.

    `box` is as HIP sees it (`left_by_rocr`). The rules are HIP's (`Device::init` in clr,
    rocclr/device/rocm/rocdevice.cpp): what follows the first word that is neither an index, written as C
    writes it, nor a piece of a UUID does not count; a repetition is passed over; an empty mask is none.

    Raises `UsageError` for two names of the mask with different values, which vLLM refuses
    (`_sync_hip_cuda_env_vars` in vllm/platforms/rocm.py).
    """
    hip, cuda = masks.get(HIP_MASK), masks.get(MASK)
    if hip and cuda and hip != cuda:
        raise UsageError(
            f"{HIP_MASK}={hip!r} and {MASK}={cuda!r} differ, which vLLM refuses: set only one of them"
        )
    mask = hip or cuda
    if not mask:
        return tuple(str(gpu.index) for gpu in box.gpus)
    tokens: list[str] = []
    for word in mask.split(","):
        named = next((str(gpu.index) for gpu in box.gpus if _named_to_hip(word, gpu)), None)
        if named is None:
            break
        tokens.append(named)
    return tuple(dict.fromkeys(tokens))


def _named_to_hip(word: str, gpu: Gpu) -> bool:
    return word in gpu.uuid if "GPU-" in word else word == str(gpu.index)


def hip_indices(words: Sequence[str], box: GpuBox) -> tuple[str, ...]:
    """Write what --gpus names as indices for HIP_VISIBLE_DEVICES; what names no GPU of the box stays."""
    found = [(word, find(word, box)) for word in words]
    return tuple(str(named.gpu.index) if named else word for word, named in found)


def kept_masks(masks: Mapping[str, str], box: GpuBox) -> dict[str, str]:
    """Give what a worker's environment must say for its indices to mean what they mean here.

    A stack may be started from another shell than it was rendered in.
    """
    return {ROCR_MASK: masks[ROCR_MASK]} if box.vendor == "amd" and ROCR_MASK in masks else {}


def masks_in_force(masks: Mapping[str, str], box: GpuBox) -> dict[str, str]:
    """Give those of the masks that are heeded for GPUs of this vendor."""
    if box.vendor == "nvidia":
        return {name: value for name, value in masks.items() if name == MASK}
    return {name: value for name, value in masks.items() if value or name == ROCR_MASK}
