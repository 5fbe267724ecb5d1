"""What the command line says, and the files that it names, become one value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vllm_stack.errors import UsageError
from vllm_stack.given import absolute, check_text
from vllm_stack.options import Options
from vllm_stack.sizes import MIB


def make_options(**settings: Any) -> Options:
    """Make one value of what the command line says, and of the files that it names."""
    for parameter in click.get_current_context().command.params:
        # Keys are looked at by themselves, and never shown.
        if parameter.name in settings and parameter.name != "api_keys":
            names = {"model": "MODEL", "vllm_args": "After `--`"}
            check_text(names.get(parameter.name, parameter.opts[0]), settings[parameter.name])
    for name in ("host", "revision"):
        if settings[name] == "":
            raise UsageError(f"--{name} is empty: name one, or leave it out")
    return _made_options(**settings)


def _made_options(
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    upstreams: tuple[str, ...],
    upstream_key_file: Path | None,
    gpus: str | None,
    cors_origins: tuple[str, ...],
    max_body: int,
    skip_checks: tuple[str, ...],
    **settings: Any,
) -> Options:
    from vllm_stack.checks.run import check_names
    from vllm_stack.gpus.mask import parse_gpu_list
    from vllm_stack.keys import check_keys, read_key_file
    from vllm_stack.origins import parse_origins
    from vllm_stack.upstreams import parse_upstreams, read_upstream_keys

    if gpus is not None and settings["device"] == "cpu":
        raise UsageError(f"--gpus {gpus} and --device cpu exclude each other: leave one out")
    automatic = frozenset(name for name in ("workers", "tensor_parallel_size") if settings[name] == "auto")
    settings |= dict.fromkeys(automatic, 1)
    addresses = parse_upstreams(upstreams)
    if upstream_key_file is not None:
        upstream_key_file = absolute(upstream_key_file)
        read_upstream_keys(upstream_key_file, addresses)
    if tls_cert is not None or tls_key is not None:
        from vllm_stack.tls_files import check_tls_files

        tls_cert, tls_key = check_tls_files(tls_cert, tls_key)
    return Options(
        tls_cert=tls_cert,
        tls_key=tls_key,
        upstreams=addresses,
        cors_origins=parse_origins(cors_origins),
        upstream_key_file=upstream_key_file,
        api_keys=check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ()))),
        gpus=None if gpus is None else parse_gpu_list(gpus),
        max_body=max_body * MIB,
        skip_checks=check_names(skip_checks),
        automatic=automatic,
        **settings,
    )
