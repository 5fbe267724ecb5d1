"""Asking the Hugging Face hub for a model that is not here; only that imports huggingface_hub."""

from __future__ import annotations

import json
import os
import queue
import re
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

from vllm_stack import __version__
from vllm_stack.errors import HubError, HubUnreachable, MachineError
from vllm_stack.model.hub_cache import CONFIG, cache_directory
from vllm_stack.model.hub_files import INDEX, NOT_LOADED, choose_files, shards_of, weight_set

_Answer = TypeVar("_Answer")

# huggingface_hub's rule (`constants.py`, ENV_VARS_TRUE_VALUES).
_TRUE = frozenset({"1", "ON", "YES", "TRUE"})

# The variables that it reads as numbers while it is imported (`constants.py`).
_NUMBERS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
# Where its HTTP library finds proxies, and the certificates it trusts.
_PROXIES = tuple(
    spelling for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY") for spelling in (name, name.lower())
)

# It becomes the name of a directory.
_COMMIT = re.compile(r"[0-9A-Za-z_-]{1,64}")

# The libraries that huggingface_hub speaks HTTP with, by version: their errors have no common base.
_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


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


def explain(error: Exception, name: str, revision: str | None) -> Exception:
    """Say in our words why huggingface_hub failed; what is a mistake of ours is given back as it is."""
    from huggingface_hub import constants
    from huggingface_hub import errors as theirs

    if isinstance(error, theirs.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__, name, revision)
    endpoint = constants.ENDPOINT
    if trouble := _settings_trouble(error):
        return HubUnreachable(trouble)
    if isinstance(error, RecursionError):
        return _unreachable(endpoint, "it answers with JSON that is nested too deeply")
    if isinstance(error, theirs.HFValidationError):
        return HubError(f"No model {name!r}: it is not a hub name (organisation/model)")
    if isinstance(error, theirs.HfHubHTTPError):
        return _explain_answer(error, name, revision, endpoint)
    if _is_disk_trouble(error):
        return MachineError(
            f"{error.filename or cache_directory()} cannot be used ({_lower(error.strerror or '')}): "
            "make room there, or point HF_HOME to a directory that can"
        )
    if isinstance(error, OSError | ValueError) or _is_of_http_library(error):
        return _unreachable(endpoint, _reason(error))
    return error


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

        raise _unreachable(constants.ENDPOINT, f"no answer within {seconds:g} s") from None
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


def _settings_trouble(error: Exception) -> str | None:
    """Name the variable that keeps the HTTP library from sending anything; None if it is not one."""
    if isinstance(error, ImportError) and "socks" in str(error).lower():
        names = (name for name in _PROXIES if os.environ.get(name, "").lower().startswith("socks"))
        return (
            f"{next(names, 'A proxy variable')} names a SOCKS proxy, which takes the package socksio: "
            "install it (pip install socksio) or unset the variable"
        )
    # Errors of a connection come as the library's own, and those of the cache name their file.
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and isinstance(error, OSError) and error.filename is None:
        unreadable = _is_disk_trouble(error) and not (
            os.path.isfile(certificates) and os.access(certificates, os.R_OK)
        )
        if unreadable or type(error).__module__ == "ssl":
            return (
                f"SSL_CERT_FILE names {certificates}, which holds no certificates that can be read "
                f"({_reason(error)}): correct it or unset it"
            )
    return None


def _explain_answer(error: Any, name: str, revision: str | None, endpoint: str) -> HubError:
    """Say what an answer of the hub means; `error` is a HfHubHTTPError.

    401 without a token is what the hub says of private and of missing models alike; with one it means
    that the token itself is refused.
    """
    from huggingface_hub import errors as theirs

    status = error.response.status_code
    with_token = "authorization" in error.response.request.headers
    said = " ".join(str(error.server_message or "").split())[:200]
    # GatedRepoError is a RepositoryNotFoundError.
    if isinstance(error, theirs.GatedRepoError):
        return HubError(
            f"{name} is gated: accept its terms at {endpoint}/{name}, and set HF_TOKEN to a token of the "
            "account that did"
        )
    if status == 401 and with_token:
        source = "HF_TOKEN" if os.environ.get("HF_TOKEN") else "the token file of `hf auth login`"
        return HubError(
            f"The hub at {endpoint} refuses the token of {source}{f' ({said})' if said else ''}: "
            "set HF_TOKEN to a valid one, or remove it"
        )
    if isinstance(error, theirs.RepositoryNotFoundError) or status == 401:
        may_read = "the token in use may not read it" if with_token else "no token was sent"
        return HubError(
            f"The hub at {endpoint} has no model {name!r}, or it is private and {may_read}: "
            "check the name, or set HF_TOKEN to a token that may read it"
        )
    if isinstance(error, theirs.RevisionNotFoundError):
        return HubError(f"{name} has no revision {revision!r}: its branches are listed at {endpoint}/{name}")
    if status == 429:
        return HubUnreachable(
            f"The hub at {endpoint} takes no more requests from here for now: "
            f"{'try again in a few minutes' if with_token else 'set HF_TOKEN, which raises the limit'}"
        )
    if status in (403, 451) or isinstance(error, theirs.DisabledRepoError):
        return HubError(
            f"The hub at {endpoint} denies access to {name}{f' ({said})' if said else ''}: "
            "use a token with the right to read it (HF_TOKEN), or another model"
        )
    return _unreachable(endpoint, f"it answers {status}")


def _unreachable(endpoint: str, reason: str) -> HubUnreachable:
    return HubUnreachable(
        f"The hub at {endpoint} cannot be used ({reason}): check the network and HF_ENDPOINT, "
        "or set HF_HUB_OFFLINE=1 to go by the cache alone"
    )


def _is_disk_trouble(error: Exception) -> TypeGuard[OSError]:
    """Tell a file that cannot be written from a connection that broke."""
    if not isinstance(error, OSError) or isinstance(error, ConnectionError | TimeoutError):
        return False
    return error.errno is not None and type(error).__module__ == "builtins"


def _is_of_http_library(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _HTTP_LIBRARIES


def _reason(error: Exception) -> str:
    """Give the reason of a failed request in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return "it does not answer as a hub"
    text = re.sub(r"\[Errno -?\d+\] ", "", " ".join(str(error).split()))
    return _lower(text[:160] or type(error).__name__)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
