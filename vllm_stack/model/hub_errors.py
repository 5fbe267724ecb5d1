"""Why the hub gave no model, in one sentence with the way out."""

from __future__ import annotations

import json
import os
import re
from typing import Any, TypeGuard

from vllm_stack.errors import HubError, HubUnreachable, MachineError
from vllm_stack.model.hub_cache import cache_directory

# Where its HTTP library finds proxies, and the certificates it trusts.
_PROXIES = tuple(
    spelling for name in ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY") for spelling in (name, name.lower())
)
# The libraries that huggingface_hub speaks HTTP with, by version: their errors have no common base.
_HTTP_LIBRARIES = frozenset({"httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"})


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
        return unreachable(endpoint, "it answers with JSON that is nested too deeply")
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
        return unreachable(endpoint, _reason(error))
    return error


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
    return unreachable(endpoint, f"it answers {status}")


def unreachable(endpoint: str, reason: str) -> HubUnreachable:
    """Say that no hub answers, why, and both ways on."""
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
