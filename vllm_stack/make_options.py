"""What the command line and the stack file say, and the files that they name, become options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vllm_stack.address import TcpAddress
from vllm_stack.errors import UsageError, about
from vllm_stack.given import absolute, check_text
from vllm_stack.options import Options, numbered
from vllm_stack.sizes import MIB

# What each model has for itself; everything else the stack has once.
OF_A_MODEL = frozenset(
    {
        "model",
        "aliases",
        "workers",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "revision",
        "gpus",
        "upstreams",
        "vllm_args",
    }
)


def make_options(models: Sequence[Mapping[str, Any]], **stack: Any) -> tuple[Options, ...]:
    """Make the options of every model of a stack, and read the files that they name.

    `models` have the settings in `OF_A_MODEL`, `stack` all others. Raises `UsageError` for what cannot be
    meant, and `StackError` for files that cannot be used.
    """
    for settings in (*models, stack):
        _check_texts(settings)
    if stack["host"] == "":
        raise UsageError("--host is empty: name one, or leave it out")
    of_models = []
    for settings in models:
        with about(settings["model"] if len(models) > 1 else ""):
            of_models.append(_made_model(stack["device"], **settings))
    addresses = tuple(dict.fromkeys(address for one in of_models for address in one["upstreams"]))
    of_stack = _made_stack(addresses, **stack)
    return numbered([Options(**of_stack, **one) for one in of_models])


def _check_texts(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        # Keys are looked at by themselves, and never shown.
        if name != "api_keys":
            check_text(_spelled(name), value)


def _spelled(name: str) -> str:
    """Spell a setting as the command line does."""
    known = {"model": "MODEL", "vllm_args": "After `--`", "aliases": "aliases"}
    parameters = click.get_current_context().command.params
    spelled = {parameter.name: parameter.opts[0] for parameter in parameters}
    return known.get(name) or spelled[name]


def _made_model(
    device: str, gpus: str | None, upstreams: Sequence[str], revision: str | None, **settings: Any
) -> dict[str, Any]:
    from vllm_stack.gpus.mask import parse_gpu_list
    from vllm_stack.upstreams import parse_upstreams

    for alias in settings["aliases"]:
        if not alias or alias != alias.strip() or alias.startswith("-") or not alias.isprintable():
            raise UsageError(f"{alias!r} cannot be an alias: use printable words without a dash in front")
    if revision == "":
        raise UsageError("--revision is empty: name one, or leave it out")
    if gpus is not None and device == "cpu":
        raise UsageError(f"--gpus {gpus} and --device cpu exclude each other: leave one out")
    automatic = frozenset(name for name in ("workers", "tensor_parallel_size") if settings[name] == "auto")
    settings |= dict.fromkeys(automatic, 1)
    least, colon, most = str(settings.pop("workers")).partition(":")
    return {
        **settings,
        "workers": int(least),
        "most_workers": int(most) if colon else 0,
        "aliases": tuple(dict.fromkeys(settings["aliases"])),
        "revision": revision,
        "gpus": None if gpus is None else parse_gpu_list(gpus),
        "upstreams": parse_upstreams(tuple(upstreams)),
        "automatic": automatic,
    }


def _made_stack(
    upstreams: tuple[TcpAddress, ...],
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    upstream_key_file: Path | None,
    cors_origins: tuple[str, ...],
    max_body: int,
    skip_checks: tuple[str, ...],
    **settings: Any,
) -> dict[str, Any]:
    from vllm_stack.checks.run import check_names
    from vllm_stack.keys.api_key import check_keys, read_key_file
    from vllm_stack.origins import parse_origins
    from vllm_stack.upstreams import read_upstream_keys

    if upstream_key_file is not None:
        upstream_key_file = absolute(upstream_key_file)
        read_upstream_keys(upstream_key_file, upstreams)
    if tls_cert is not None or tls_key is not None:
        from vllm_stack.tls_files import check_tls_files

        tls_cert, tls_key = check_tls_files(tls_cert, tls_key)
    return {
        **settings,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "cors_origins": parse_origins(cors_origins),
        "upstream_key_file": upstream_key_file,
        "api_keys": check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ()))),
        "max_body": max_body * MIB,
        "skip_checks": check_names(skip_checks),
    }
