"""What the user passes on to vLLM after `--`: what we set ourselves is refused, paths made absolute."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vllm_stack.errors import UsageError
from vllm_stack.given import absolute, expanded

# vLLM's option -> what the user should say instead.
_OURS = {
    "--model": "give the model as MODEL",
    "--port": "use --base-port",
    "--host": "workers listen on loopback only; --host of vllm-stack is the public door's",
    "--uds": "use --worker-transport unix, which gives each worker a socket of its own",
    "--ssl-certfile": "workers speak plain HTTP on loopback",
    "--ssl-keyfile": "workers speak plain HTTP on loopback",
    "--api-key": "use --api-key or --api-key-file of vllm-stack; workers get a key of their own",
    "--revision": "use --revision of vllm-stack",
    "--tensor-parallel-size": "use --tensor-parallel-size of vllm-stack, which also counts the GPUs",
    "--pipeline-parallel-size": "use --pipeline-parallel-size of vllm-stack, with --target ray",
    "--data-parallel-size": "use --workers: every worker is an engine of its own",
    "--device-ids": "use --gpus: workers are pinned through CUDA_VISIBLE_DEVICES",
    "--root-path": "the proxy passes paths on as they are",
    "--shutdown-timeout": "use --drain-timeout",
}
_SHORT = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-dp": "--data-parallel-size",
}
# With these vLLM serves nothing; no other option begins with `--hel`.
_HELP = frozenset({"-h", "--hel", "--help"})
# Options of vLLM 0.32 whose value is a path.
_PATHS = frozenset(
    {
        "--allowed-local-media-path",
        "--config",
        "--download-dir",
        "--log-config-file",
        "--mm-encoder-fp8-scale-path",
        "--mm-encoder-fp8-scale-save-path",
        "--reasoning-parser-plugin",
        "--tool-parser-plugin",
    }
)
# And those whose value may be a path, or a name, or a text: a path if there is such a file.
_PERHAPS_PATHS = frozenset(
    {
        "--chat-template",
        "--generation-config",
        "--hf-config-path",
        "--lora-modules",
        "--spec-model",
        "--tokenizer",
    }
)


def accept(
    args: tuple[str, ...], exists: Callable[[Path], bool] = os.path.exists, cwd: Path | None = None
) -> tuple[str, ...]:
    """Check the arguments after `--` and make the paths among them absolute.

    Raises `UsageError` for an option that vllm-stack sets itself, naming what to use instead, and for one
    with which vLLM would print something and end.
    """
    accepted: list[str] = []
    option = ""
    for arg in args:
        if "\0" in arg:
            raise UsageError(f"{arg!r} after `--` has a NUL byte, which no argument can carry")
        if arg.startswith("-") and not _is_number(arg):
            option, equals, value = arg.partition("=")
            option = _canonical(option)
            _refuse_ours(arg, option)
            if equals:
                arg = f"{arg.partition('=')[0]}={_absolute(option, value, cwd, exists)}"
        else:
            arg = _absolute(option, arg, cwd, exists)
        accepted.append(arg)
    return tuple(accepted)


def has_option(args: tuple[str, ...], name: str) -> bool:
    """Tell whether the user set vLLM's option `name` (`--dashes`) themselves."""
    return any(_canonical(arg.partition("=")[0]) == name for arg in args if arg.startswith("-"))


def _refuse_ours(arg: str, option: str) -> None:
    """vLLM's parser takes `--por` for `--port`: an abbreviation of an option of ours is one, too."""
    if "--api-key".startswith(option):
        arg = arg.partition("=")[0]  # what follows is a secret
    if option in _HELP:
        raise UsageError(f"{arg!r} after `--` prints a help and ends: ask `vllm serve {arg}` yourself")
    if option in _OURS:
        raise UsageError(f"{arg!r} after `--` is set by vllm-stack: {_OURS[option]}")
    for ours, instead in _OURS.items():
        if len(option) > len("--") and ours.startswith(option):
            raise UsageError(
                f"{arg!r} after `--` can be read as {ours}, which is set by vllm-stack ({instead}): "
                "write the option out"
            )


def _canonical(option: str) -> str:
    """Spell an option as vLLM's parser does, which takes underscores for dashes."""
    if option.startswith("--"):
        return "--" + option[2:].replace("_", "-")
    return _SHORT.get(option, option)


def _is_number(arg: str) -> bool:
    try:
        float(arg)
    except ValueError:
        return False
    return True


def _absolute(option: str, value: str, here: Path | None, exists: Callable[[Path], bool]) -> str:
    """Make a relative path absolute: workers run in directories of their own."""
    name, equals, path = value.partition("=") if option == "--lora-modules" else ("", "", value)
    if not path or path.startswith(("/", "{", "[")):
        return value
    marked = path.startswith(("./", "../", "~/")) or path in (".", "..")
    # Not by way of `expanded`: what is no path, such as an inline template, is no mistake here.
    is_path = (
        marked
        or option in _PATHS
        or (option in _PERHAPS_PATHS and exists(_below(here, Path(os.path.expanduser(path)))))
    )
    return f"{name}{equals}{absolute(_below(here, expanded(path)))}" if is_path else value


def _below(here: Path | None, path: Path) -> Path:
    return path if here is None else here / path
