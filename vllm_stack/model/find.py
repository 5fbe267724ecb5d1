"""Which model the workers serve: a directory, or a name on the hub, and what its own files say."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vllm_stack.errors import HubUnreachable, ModelError
from vllm_stack.model.config import ModelConfig, parse_config
from vllm_stack.model.hub import ask_hub, uses_modelscope
from vllm_stack.model.hub_cache import cached_snapshot, is_whole
from vllm_stack.model.weights import with_weights

# huggingface_hub's rule for repository ids (validate_repo_id), at most one "/".
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
# Where ModelOpt keeps how the weights are quantised, if config.json does not tell.
_QUANTIZATION = "hf_quant_config.json"
# Seconds; `render` answers at once, or at least soon.
_HUB_PATIENCE = 1.5


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the workers will be told it, an absolute path or a hub name; sizes in bytes.

    What is not known is None. `hub_trouble` says why the hub could not be asked, `incomplete` that a download
    of it was broken off.
    """

    name: str
    source: Literal["directory", "file", "cache", "hub", "unknown"]
    config: ModelConfig | None = None
    weight_bytes: int | None = None
    commit: str | None = None
    download_bytes: int | None = None
    incomplete: bool = False
    hub_trouble: str | None = None


def read_model(text: str, revision: str | None = None, ask: bool = True) -> Model:
    """Resolve MODEL to a directory or a hub name and read its config, from the hub only if `ask`.

    Raises `ModelError` for a name that is neither, a directory without config.json, a config that is
    not JSON, or a hub that knows no such model or does not hand it out.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ModelError(f"The model name {text!r} has a control character in it")
    path = Path(text).expanduser()
    if text and path.is_dir():
        config = _config_of(path)
        return Model(str(path.absolute()), "directory", config, config.weight_bytes)
    if path.is_file() and path.suffix == ".gguf":
        return Model(str(path.absolute()), "file", weight_bytes=path.stat().st_size)
    looks_like_path = text.startswith(("/", "./", "../", "~")) or text.count("/") > 1
    if looks_like_path or not _HUB_NAME.fullmatch(text):
        raise ModelError(
            f"No model {text!r}: there is no such directory, and it is not a hub name (organisation/model)"
        )
    return _from_cache(text, revision) or _from_hub(text, revision, ask)


def _from_cache(name: str, revision: str | None) -> Model | None:
    snapshot = cached_snapshot(name, revision)
    if snapshot is None:
        return None
    config = _config_of(snapshot)
    return Model(
        name, "cache", config, config.weight_bytes, commit=snapshot.name, incomplete=not is_whole(snapshot)
    )


def _from_hub(name: str, revision: str | None, ask: bool) -> Model:
    """Ask the hub; if it does not answer, the model is taken on trust."""
    if not ask or uses_modelscope():
        return Model(name, "unknown")
    try:
        told = ask_hub(name, revision, _HUB_PATIENCE)
    except HubUnreachable as error:
        return Model(name, "unknown", hub_trouble=str(error))
    config = (
        None if told.config is None else replace(parse_config(told.config), weight_bytes=told.weight_bytes)
    )
    return Model(name, "hub", config, told.weight_bytes, told.commit, told.download_bytes)


def _config_of(directory: Path) -> ModelConfig:
    """Read the config, what ModelOpt keeps beside it, and the weights."""
    beside = directory / _QUANTIZATION
    quantization = _read_json(beside) if beside.is_file() else None
    return with_weights(parse_config(_read_config(directory), quantization), directory)


def _read_config(directory: Path) -> object:
    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{directory} holds no model: it has no config.json")
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
