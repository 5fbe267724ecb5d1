"""What a systemd unit has to say that a shell knows by itself: whose the stack is, and its environment."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import OutputError

# Taken along from the shell that renders: where programs, libraries, models and caches are found, and how
# the hub is reached. None of them is a secret by its nature: anybody on the machine may read a unit.
TAKEN_ALONG = (
    "PATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CUDA_HOME",
    "CUDA_PATH",
    "ROCM_PATH",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "VLLM_USE_MODELSCOPE",
    "MODELSCOPE_CACHE",
    "XDG_CACHE_HOME",
    "VLLM_CACHE_ROOT",
    "VLLM_CONFIG_ROOT",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "VLLM_STACK_NATIVE",
)
# Others of these may matter to vLLM, or be secret: they are named to the user, not taken along.
_OF_INTEREST = re.compile(r"(HF|VLLM|CUDA|NCCL|TORCH|TORCHINDUCTOR|TRITON|FLASHINFER|OMP)_\w+")
# Which GPUs there are is in the rendered files; our own options have become them.
_RENDERED = re.compile(r"VLLM_STACK_\w+|CUDA_VISIBLE_DEVICES|CUDA_DEVICE_ORDER")
# Those that hold a URL, such as https://user:password@proxy:3128; its scheme may be left out.
_IS_URL = re.compile(r"HF_ENDPOINT|https?_proxy", re.IGNORECASE)
# What systemd takes for the name of a user or a group everywhere, without a question.
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,30}")


@dataclass(frozen=True, slots=True)
class Service:
    """Who runs the stack, the variables it gets, and the names of those that it may miss."""

    user: str
    group: str
    environment: Mapping[str, str]
    missed: tuple[str, ...] = ()

    @property
    def assignments(self) -> list[str]:
        """The variables as systemd reads them; raises `OutputError` for one that it cannot be told."""
        return [assignment(name, value) for name, value in sorted(self.environment.items())]


def read_service(written_down: Path) -> Service:
    """Give what a shell of our user and group knows.

    `written_down` is the user's own file of variables for the unit, which need not be there.
    """
    user, group = os.geteuid(), os.getegid()
    environment, missed = divide(os.environ, _names_in(written_down))
    return Service(
        _account(user, lambda: pwd.getpwuid(user).pw_name),
        _account(group, lambda: grp.getgrgid(group).gr_name),
        environment,
        missed,
    )


def divide(environ: Mapping[str, str], known: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Tell the variables that the unit gets from the names of those that it may miss.

    Those that are `known` are written down for it elsewhere, and come before ours.
    """
    taken = {
        name: environ[name]
        for name in TAKEN_ALONG
        if name in environ and name not in known and not _has_credentials(name, environ[name])
    }
    ours = {*taken, *known}
    missed = sorted(
        name
        for name in environ.keys() - ours
        if name in TAKEN_ALONG or (_OF_INTEREST.fullmatch(name) and not _RENDERED.fullmatch(name))
    )
    return taken, tuple(missed)


def _has_credentials(name: str, value: str) -> bool:
    return "@" in value and _IS_URL.fullmatch(name) is not None


def assignment(name: str, value: str) -> str:
    """Quote a variable for `Environment=`, where `%` and `\\` have meanings of their own.

    Raises `OutputError` for a control character, with which systemd would not take the line.
    """
    if not value.isprintable():
        raise OutputError(
            f"{name} is {value!a}, which a systemd unit cannot hold: unset it, or render without --systemd"
        )
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{name}={escaped}"'


def _account(number: int, name: Callable[[], str]) -> str:
    """Give the name of an account, or its number where it has none that systemd takes."""
    try:
        found = name()
    except KeyError:
        return str(number)
    return found if _ACCOUNT.fullmatch(found) else str(number)


def _names_in(path: Path) -> frozenset[str]:
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return frozenset()
    return frozenset(line.partition("=")[0].strip() for line in text.splitlines() if "=" in line)
