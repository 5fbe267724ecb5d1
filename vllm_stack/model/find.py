"""Which model the workers serve: a directory, or a name on the hub, and what its own files say."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vllm_stack.errors import HubUnreachable, MachineError, ModelError
from vllm_stack.given import absolute, expanded
from vllm_stack.model.config import ModelConfig, parse_config
from vllm_stack.model.hub import ask_hub, uses_modelscope
from vllm_stack.model.hub_cache import find_snapshot, is_whole
from vllm_stack.model.weights import read_weights, with_weights
from vllm_stack.regular_file import MOST_SETTINGS, read_regular

# huggingface_hub's rule for repository ids (validate_repo_id), at most one "/".
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)
# What vLLM streams weights from (vllm/transformers_utils/runai_utils.py, is_runai_obj_uri).
_STORE = re.compile(r"(s3|gs|az)://\S+", re.IGNORECASE)
# The config of Mistral's own format, which vLLM takes in its place.
_PARAMS = "params.json"
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
    source: Literal["directory", "file", "store", "cache", "hub", "unknown"]
    config: ModelConfig | None = None
    weight_bytes: int | None = None
    commit: str | None = None
    download_bytes: int | None = None
    incomplete: bool = False
    hub_trouble: str | None = None


def read_model(text: str, revision: str | None = None, ask: bool = True, needs_config: bool = True) -> Model:
    """Resolve MODEL to a directory or a hub name and read its config, from the hub only if `ask`.

    Where the config is elsewhere (`--hf-config-path`) it is not needed, and not read.

    Raises `ModelError` for a name that is neither, a directory without config.json, a config that is
    not JSON, or a hub that knows no such model or does not hand it out.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ModelError(f"The model name {text!r} has a control character in it")
    path = expanded(text)
    if text and os.path.isdir(path):
        config = _config_of(path) if needs_config else None
        return Model(str(absolute(path)), "directory", config, read_weights(path))
    if path.suffix == ".gguf" and os.path.isfile(path):
        return Model(str(absolute(path)), "file", weight_bytes=path.stat().st_size)
    if _STORE.fullmatch(text):
        return Model(text, "store")
    looks_like_path = text.startswith(("/", "./", "../", "~")) or text.count("/") > 1
    if looks_like_path or not _HUB_NAME.fullmatch(text):
        raise ModelError(
            f"No model {text!r}: there is no such directory, and it is not a hub name (organisation/model)"
        )
    return _from_cache(text, revision) or _from_hub(text, revision, ask)


def _from_cache(name: str, revision: str | None) -> Model | None:
    snapshot = find_snapshot(name, revision)
    if snapshot is None or not any(os.path.isfile(snapshot / file) for file in ("config.json", _PARAMS)):
        return None
    config = _config_of(snapshot)
    weights = read_weights(snapshot)
    return Model(name, "cache", config, weights, commit=snapshot.name, incomplete=not is_whole(snapshot))


def _from_hub(name: str, revision: str | None, ask: bool) -> Model:
    """Ask the hub; if it does not answer, the model is taken on trust."""
    if not ask:
        return Model(name, "unknown")
    if uses_modelscope():
        return Model(name, "unknown", hub_trouble="VLLM_USE_MODELSCOPE is set, so the hub was not asked")
    try:
        told = ask_hub(name, revision, _HUB_PATIENCE)
    except (HubUnreachable, MachineError) as error:
        return Model(name, "unknown", hub_trouble=str(error))
    config = replace(parse_config(told.config), weight_bytes=told.weight_bytes) if told.config else None
    return Model(name, "hub", config, told.weight_bytes, told.commit, told.download_bytes)


def _config_of(directory: Path) -> ModelConfig | None:
    """Read the config, what ModelOpt keeps beside it, and the weights; Mistral's own config is not read."""
    if not os.path.isfile(directory / "config.json") and os.path.isfile(directory / _PARAMS):
        return None
    beside = directory / _QUANTIZATION
    quantization = _read_json(beside) if os.path.isfile(beside) else None
    return with_weights(parse_config(_read_config(directory), quantization), directory)


def _read_config(directory: Path) -> object:
    path = directory / "config.json"
    if not os.access(directory, os.R_OK | os.X_OK):
        raise ModelError(f"{directory} may not be read by this user")
    if not os.path.isfile(path):
        raise ModelError(
            f"{directory} holds no model: it has no config.json (--hf-config-path names another)"
        )
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


def _read_json(path: Path) -> object:
    try:
        return json.loads(read_regular(path, MOST_SETTINGS))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from None
