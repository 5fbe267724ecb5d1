"""Which files of a model on the hub vLLM downloads, and which of them it loads."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vllm_stack.regular_file import MOST_SETTINGS, read_regular

INDEX = "model.safetensors.index.json"
INDEXES = {
    "consolidated*.safetensors": "consolidated.safetensors.index.json",
    "*.safetensors": INDEX,
    "*.bin": "pytorch_model.bin.index.json",
}
# In vLLM's order: the first that matches anything decides.
_WEIGHTS = ("consolidated*.safetensors", "*.safetensors", "*.bin", "*.pt")
_SHARD = re.compile(r"(?P<head>.*)-\d+-of-(?P<count>\d+)(?P<tail>\.\w+)")
# vllm/model_executor/model_loader/weight_utils.py, filter_files_not_needed_for_inference.
NOT_LOADED = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt")
# The layers of an embedding model after its transformer (vllm/model_executor/models/adapters.py).
_DENSE = re.compile(r"\d+_\w+/(model\.safetensors|pytorch_model\.bin)", re.ASCII)
# vllm/transformers_utils/repo_utils.py, _WEIGHT_FILE_PATTERNS: everything else vLLM downloads.
_NOT_READ = tuple(
    f"*.{suffix}"
    for suffix in (
        *("safetensors", "bin", "pt", "pth", "ckpt", "gguf", "h5", "msgpack", "onnx", "onnx_data"),
        *("png", "jpg", "jpeg", "gif", "webp", "mp3", "mp4", "wav", "flac"),
        *("parquet", "arrow", "ipynb", "zip", "tar*"),
    )
)


def choose_files(paths: Iterable[str], shards: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Choose the files of a model that vLLM downloads: all but the weights, and the weights.

    `shards` are what model.safetensors.index.json names. The rules are those of
    `vllm/model_executor/model_loader/default_loader.py` (_prepare_weights, load format "auto") and
    `weight_utils.py` (download_weights_from_hf), and for the rest `transformers_utils/repo_utils.py`
    (get_non_weight_snapshot_path). A pattern matches in subdirectories too, as it does there.
    """
    names = sorted(set(paths))
    others = [path for path in names if not any(fnmatchcase(path, pattern) for pattern in _NOT_READ)]
    root = {path for path in names if "/" not in path}
    pattern, in_root = weight_set(root)
    weights = [path for path in names if fnmatchcase(path, pattern)]
    if pattern == "consolidated*.safetensors":
        weights = sorted(in_root)
    elif pattern == "*.safetensors" and INDEX in root:
        indexed = set(shards) or {path for path in in_root if _SHARD.fullmatch(path)} or in_root
        weights = [path for path in names if path in indexed]
    dense = [path for path in names if _DENSE.fullmatch(path) and path not in weights]
    # One form of each layer; safetensors come first.
    dense = [p for p in dense if p.endswith(".safetensors") or p.rpartition("/")[0] not in _folders(dense)]
    return others, (weights + dense if weights else [])


def weight_set(root: Collection[str]) -> tuple[str, set[str]]:
    """Find the pattern that decides what vLLM loads, and what it loads of the top directory."""
    for pattern in _WEIGHTS:
        if any(fnmatchcase(name, pattern) for name in root):
            return pattern, {n for n in root if fnmatchcase(n, pattern) and not n.endswith(NOT_LOADED)}
    return "", set()


def read_shards(index: Path) -> frozenset[str] | None:
    """Read which files an index names; None if it cannot be read."""
    try:
        return shards_of(json.loads(read_regular(index, MOST_SETTINGS)))
    except (OSError, ValueError, RecursionError):
        return None


def shards_of(index: Any) -> frozenset[str]:
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise ValueError("no weight_map")
    return frozenset(value for value in weight_map.values() if isinstance(value, str))


def counted_shards(file: str) -> set[str]:
    """Name all the shards of the set that one of them belongs to."""
    shard = _SHARD.fullmatch(file)
    if not shard:
        return {file}
    head, count, tail = shard["head"], shard["count"], shard["tail"]
    width = len(file) - len(f"{head}--of-{count}{tail}")
    return {f"{head}-{number:0{width}}-of-{count}{tail}" for number in range(1, min(int(count), 10_000) + 1)}


def _folders(paths: Iterable[str]) -> set[str]:
    return {path.rpartition("/")[0] for path in paths if path.endswith(".safetensors")}
