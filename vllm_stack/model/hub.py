"""Asking the Hugging Face hub for a model that is not here; only that imports huggingface_hub."""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from vllm_stack import __version__
from vllm_stack.errors import HubError
from vllm_stack.model.hub_cache import CONFIG, cache_directory
from vllm_stack.model.hub_errors import explain, unreachable
from vllm_stack.model.hub_files import INDEX, NOT_LOADED, choose_files, shards_of, weight_set

_Answer = TypeVar("_Answer")

# huggingface_hub's rule (`constants.py`, ENV_VARS_TRUE_VALUES).
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})

# The variables that it reads as numbers while it is imported (`constants.py`).
_NUMBERS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
# It becomes the name of a directory.
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a model: its size in bytes, and the name of its content in the cache, where known."""

    path: str
    size: int | None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the hub says of a model at one commit; sizes in bytes, None where the hub does not tell.

    `config` is None if the model has no config.json. `weight_bytes` is what vLLM loads,
    `download_bytes` what it downloads; both are None too if there are no weights that it knows.
    """

    name: str
    commit: str
    gated: bool
    config: dict[str, Any] | None
    weight_bytes: int | None
    download_bytes: int | None
    others: tuple[HubFile, ...] = ()
    weights: tuple[HubFile, ...] = ()


def offline() -> str | None:
    """Name the variable that forbids to ask the hub (huggingface_hub, `constants.py`, HF_HUB_OFFLINE)."""
    name = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return name if os.environ.get(name, "").upper() in _TRUE else None


def uses_modelscope() -> bool:
    """Tell whether vLLM takes its models from ModelScope (`vllm/envs.py`): the hub is not asked then."""
    return os.environ.get("VLLM_USE_MODELSCOPE", "").strip().lower() in ("1", "true")


def ask_hub(name: str, revision: str | None, timeout: float = 1.5, *, read_index: bool = False) -> HubModel:
    """Ask the hub what a model is, within `timeout` seconds in all; nothing is written to the disk.

    Without `read_index` it is taken from the names of the files which of several sets of safetensors
    is loaded. Raises `HubUnreachable` if there is no answer of a hub in time, and `HubError` for every
    other reason why there is no model: none of that name or revision, gated, a refused token, offline.
    """
    _check_may_ask(name)
    _import_library()
    return _within(timeout, lambda: _ask(name, revision, timeout, read_index), name)


def _check_may_ask(name: str) -> None:
    if uses_modelscope():
        raise HubError(
            f"VLLM_USE_MODELSCOPE is set, so the hub is not asked for {name}: unset it to use the hub"
        )
    if variable := offline():
        raise HubError(
            f"{name} is not whole in {cache_directory()}, and {variable} forbids to ask the hub: "
            "unset it, or give a directory as MODEL"
        )


def _import_library() -> None:
    """Import huggingface_hub before the clock starts, and keep it from asking more than it is told to.

    Raises `HubError` for a variable that it cannot be imported with.
    """
    for variable in _NUMBERS:
        if not _is_whole_number(value := os.environ.get(variable) or "0"):
            raise HubError(f"{variable} is {value!r}: set it to a whole number of seconds, or unset it")
    try:
        from huggingface_hub import constants
    except ValueError as error:
        raise HubError(
            f"huggingface_hub cannot be used as its variables are set ({error}): correct HF_ENDPOINT"
        ) from None

    # With it on, the first request of a day is one for a list of agents, with a patience of its own.
    constants.HF_HUB_DISABLE_TELEMETRY = True


def _is_whole_number(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True


def _within(seconds: float, ask: Callable[[], _Answer], name: str) -> _Answer:
    """Give the answer of `ask`, or raise what it raised; after `seconds` it is left to itself.

    The library's own timeouts hold for each wait of each request: a hub that trickles outlasts them.
    """
    answers: queue.SimpleQueue[tuple[_Answer | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((ask(), None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=run, name=f"ask for {name}", daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except queue.Empty:
        from huggingface_hub import constants

        raise unreachable(constants.ENDPOINT, f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]


def _ask(name: str, revision: str | None, timeout: float, read_index: bool) -> HubModel:
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="vllm-stack", library_version=__version__)
        commit, gated, files = _describe(api, name, revision, timeout)
        # Of a gated model everybody may know the names of the files; only reading one tells.
        probe = next((path for path in (CONFIG, "params.json") if path in files), None)
        config = _read_json(name, commit, probe, timeout) if probe else None
        shards: frozenset[str] = frozenset()
        if read_index and INDEX in files and weight_set(files)[0] == "*.safetensors":
            shards = shards_of(_read_json(name, commit, INDEX, timeout))
    except Exception as error:
        raise explain(error, name, revision) from None
    others, weights = ([files[path] for path in chosen] for chosen in choose_files(files, shards))
    loaded = [file for file in weights if file.path in shards or _is_loaded(file.path)]
    return HubModel(
        name=name,
        commit=commit,
        gated=gated,
        config=config if probe == CONFIG else None,
        weight_bytes=_sum(loaded) if weights else None,
        download_bytes=_sum([*others, *weights]) if weights else None,
        others=tuple(others),
        weights=tuple(weights),
    )


def _describe(
    api: Any, name: str, revision: str | None, timeout: float
) -> tuple[str, bool, dict[str, HubFile]]:
    """Give the commit of a model, whether it is gated, and its files; `api` is a HfApi.

    The library takes the description apart without a look at it: what is none of a hub is a `ValueError`.
    """
    try:
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=timeout)
        files = {file.path: file for file in map(_hub_file, info.siblings or ())}
        if not (isinstance(info.sha, str) and _COMMIT.fullmatch(info.sha)):
            raise ValueError("it tells no commit")
    except (TypeError, KeyError, AttributeError):
        raise ValueError("it does not answer as a hub") from None
    return info.sha, bool(info.gated), files


def _hub_file(sibling: Any) -> HubFile:
    """Read one file; its content is named by the SHA-256 of large files, by git's hash of small ones."""
    if not isinstance(sibling.rfilename, str) or not isinstance(sibling.size, int | None):
        raise TypeError("a file without a name or a size")
    return HubFile(sibling.rfilename, sibling.size, sibling.lfs.sha256 if sibling.lfs else sibling.blob_id)


def _is_loaded(path: str) -> bool:
    return "/" not in path and not path.endswith(NOT_LOADED)


def _sum(files: Iterable[HubFile]) -> int | None:
    sizes = [file.size for file in files]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _read_json(name: str, commit: str, path: str, timeout: float) -> dict[str, Any]:
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(library_name="vllm-stack", library_version=__version__)
    response = get_session().get(hf_hub_url(name, path, revision=commit), headers=headers, timeout=timeout)
    hf_raise_for_status(response)
    value = response.json()
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object")
    return value
