"""Which vLLM the workers run: found and versioned without importing it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import UsageError, VllmCommandError


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """The words before `serve`, the first one absolute; `version` is None where nothing tells it."""

    argv: tuple[str, ...]
    version: str | None


def find_vllm(command: str) -> VllmCommand:
    """Resolve `--vllm-command`, which may carry leading words (`/opt/vllm/bin/python -m vllm`).

    A bare name is looked for beside our own interpreter first: that is the virtual environment
    the stack was installed in, whether or not it is activated.

    Raises `VllmCommandError` when there is no such program, `UsageError` for unbalanced quotes.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"--vllm-command {command!r} cannot be split into words: {error}") from None
    if not words:
        raise UsageError("--vllm-command is empty: name the vllm program to run")
    program = _find_program(words[0])
    if program is None:
        raise VllmCommandError(
            f"No program {words[0]!r} was found: install vLLM beside vllm-stack "
            "(pip install 'vllm-stack[vllm]') or name yours with --vllm-command /path/to/vllm"
        )
    rest = tuple(_absolute_file(word) for word in words[1:])
    return VllmCommand((str(program), *rest), _version_beside(program))


def _find_program(word: str) -> Path | None:
    if os.sep in word:
        path = Path(word).expanduser().absolute()
        return path if path.is_file() and os.access(path, os.X_OK) else None
    # Not resolve(): the interpreter of a virtual environment is a link out of it.
    beside = Path(sys.executable).absolute().parent / word
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which(word)
    return Path(found).absolute() if found else None


def _absolute_file(word: str) -> str:
    """Make a script named by a relative path absolute: workers run in directories of their own."""
    return str(Path(word).absolute()) if os.sep in word and Path(word).is_file() else word


def _version_beside(program: Path) -> str | None:
    """Read the version from the dist-info of the environment the program belongs to."""
    for info in sorted(program.parent.parent.glob("lib/python3*/site-packages/vllm-*.dist-info")):
        return info.name.removeprefix("vllm-").removesuffix(".dist-info")
    return None
