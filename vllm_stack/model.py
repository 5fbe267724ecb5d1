"""What the model's own config says, read without importing torch, transformers or vllm."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.errors import ModelError

# huggingface_hub's rule for repository ids (validate_repo_id), at most one "/".
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
_HEAD_FIELDS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the workers will be told it: an absolute directory, or a hub name.

    `attention_heads` is None when no config is on this machine yet (a hub name not in the cache).
    """

    name: str
    local: bool
    attention_heads: int | None = None


def read_model(text: str, revision: str | None = None) -> Model:
    """Resolve MODEL to a directory or a hub name and read its config.

    Raises `ModelError` for a name that is neither, a directory without config.json, or a config
    that is not JSON.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ModelError(f"The model name {text!r} has a control character in it")
    path = Path(text).expanduser()
    if text and path.is_dir():
        return Model(str(path.absolute()), True, _attention_heads(_read_config(path)))
    if path.is_file() and path.suffix == ".gguf":
        return Model(str(path.absolute()), True)
    looks_like_path = text.startswith(("/", "./", "../", "~")) or text.count("/") > 1
    if looks_like_path or not _HUB_NAME.fullmatch(text):
        raise ModelError(
            f"No model {text!r}: there is no such directory, and it is not a hub name (organisation/model)"
        )
    cached = _cached_snapshot(text, revision)
    heads = _attention_heads(_read_config(cached)) if cached else None
    return Model(text, False, heads)


def check_heads(model: Model, tensor_parallel_size: int) -> None:
    """Refuse what vLLM would refuse after loading (`vllm/config/model.py`, verify_with_parallel_config)."""
    heads = model.attention_heads
    if heads is not None and heads % tensor_parallel_size:
        divisors = ", ".join(str(n) for n in range(1, min(heads, 64) + 1) if heads % n == 0)
        raise ModelError(
            f"{model.name} has {heads} attention heads, which --tensor-parallel-size "
            f"{tensor_parallel_size} does not divide: use one of {divisors}"
        )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{directory} holds no model: it has no config.json") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def _attention_heads(config: dict[str, Any]) -> int | None:
    """Find the head count, in the text part of a multimodal config first, as vLLM does."""
    for name in _TEXT_CONFIGS:
        nested = config.get(name)
        if isinstance(nested, dict) and (heads := _attention_heads(nested)) is not None:
            return heads
    for field in _HEAD_FIELDS:
        value = config.get(field)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _cached_snapshot(name: str, revision: str | None) -> Path | None:
    """Find the snapshot of a hub name in the local cache (huggingface_hub's layout)."""
    home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    repository = cache / f"models--{name.replace('/', '--')}"
    reference = repository / "refs" / (revision or "main")
    try:
        commit = reference.read_text("utf-8").strip()
    except (OSError, ValueError):
        commit = revision or ""
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and (snapshot / "config.json").is_file() else None
