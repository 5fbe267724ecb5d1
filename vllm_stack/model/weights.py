"""The files of a model's weights, and how much of them vLLM would load."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm_stack.model.config import ModelConfig, as_count
from vllm_stack.regular_file import MOST_SETTINGS, open_regular, read_regular

_INDEXES = ("consolidated.safetensors.index.json", "model.safetensors.index.json")
# Files of training that vLLM leaves out (weight_utils.py, filter_files_not_needed_for_inference).
_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_WIDE = frozenset({"F32", "F64"})
_LONGEST_HEADER = 100 * 2**20


def with_weights(config: ModelConfig, directory: Path) -> ModelConfig:
    """Add what the files of weights in `directory` say."""
    return replace(config, weight_bytes=read_weights(directory), wide_bytes=read_wide_bytes(directory))


def read_weights(directory: Path) -> int | None:
    """Give the bytes of the files vLLM would load, or None where there are none.

    The order is that of vllm/model_executor/model_loader/default_loader.py, _prepare_weights:
    consolidated*.safetensors before the others, then *.safetensors, *.bin, *.pt; a *.gguf if there is
    nothing else. Of files that are not all there yet, the index tells the size.
    """
    files = _safetensors(directory)
    if files is None:
        return as_count(_index(directory).get("metadata", {}).get("total_size"))
    if not files:
        files = _others(directory)
    return as_count(sum(_size(file) for file in files))


def read_wide_bytes(directory: Path) -> int | None:
    """Give how many bytes of the safetensors are kept in 32 bits or more; None where it cannot be told.

    vLLM loads them as 16 bits into a model of 16 bits, whatever the `dtype` of config.json.
    """
    files = _safetensors(directory)
    if not files:
        return None
    wide = 0
    for file in files:
        header = _header(file)
        if header is None:
            return None
        spans = [_span(tensor) for name, tensor in header.items() if name != "__metadata__"]
        if None in spans:
            return None
        wide += sum(span for span in spans if span is not None)
    return wide


def _safetensors(directory: Path) -> list[Path] | None:
    """Give the safetensors vLLM would load; None where the index names some that are not there."""
    found = _glob(directory, "consolidated*.safetensors") or _glob(directory, "*.safetensors")
    named = _index(directory).get("weight_map")
    if not isinstance(named, dict) or not named:
        return found
    names = {name for name in named.values() if isinstance(name, str)}
    files = [file for file in found if file.name in names]
    return files if len(files) == len(names) else None


def _index(directory: Path) -> dict[str, Any]:
    """Read the index of the safetensors that vLLM would load."""
    name = _INDEXES[0] if _glob(directory, "consolidated*.safetensors") else _INDEXES[1]
    try:
        index = json.loads(read_regular(directory / name, MOST_SETTINGS))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(index, dict):
        return {}
    return index if isinstance(index.get("metadata", {}), dict) else {**index, "metadata": {}}


def _others(directory: Path) -> list[Path]:
    for pattern in ("*.bin", "*.pt"):
        if files := [file for file in _glob(directory, pattern) if not file.name.endswith(_TRAINING)]:
            return files
    files = _glob(directory, "*.gguf")
    # Several that are not parts of one are the same model in several sizes.
    return files if len(files) == 1 or all(_SPLIT_GGUF.search(file.name) for file in files) else []


def _glob(directory: Path, pattern: str) -> list[Path]:
    try:
        return sorted(file for file in directory.glob(pattern) if os.path.isfile(file))
    except OSError:
        return []


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _header(file: Path) -> dict[str, Any] | None:
    """Read the table of tensors at the head of a safetensors file."""
    try:
        with open_regular(file) as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= _LONGEST_HEADER else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _span(tensor: object) -> int | None:
    """Give the bytes of one tensor, 0 if it is not wide; None for what describes no tensor."""
    dtype = tensor.get("dtype") if isinstance(tensor, dict) else None
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not isinstance(dtype, str) or not isinstance(offsets, list) or len(offsets) != 2:
        return None
    if not all(type(offset) is int for offset in offsets):
        return None
    return max(0, offsets[1] - offsets[0]) if dtype in _WIDE else 0
