"""Which vLLM the workers run: found and versioned without importing it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from vllm_stack.errors import UsageError, VllmCommandError
from vllm_stack.given import absolute

# torch/version.py: `cuda: Optional[str] = '13.0'`
_CUDA = re.compile(r"""^cuda\b[^=\n]*=\s*["'](\d+)\.(\d+)""", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class VllmCommand:
    """The words before `serve`, the first one absolute.

    `version`, and the CUDA that its torch is built for, are None where nothing tells them.
    """

    argv: tuple[str, ...]
    version: str | None
    cuda: tuple[int, int] | None = None


def find_vllm(command: str) -> VllmCommand:
    """Resolve `--vllm-command`, which may carry leading words (`python -m vllm.entrypoints.cli.main`).

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
    return VllmCommand((str(program), *rest), _version_beside(program), _cuda_beside(program))


def _find_program(word: str) -> Path | None:
    if os.sep in word:
        path = absolute(word)
        return path if _can_run(path) else None
    # Not resolve(): the interpreter of a virtual environment is a link out of it.
    beside = Path(sys.executable).absolute().parent / word
    if _can_run(beside):
        return beside
    found = shutil.which(word)
    return absolute(found) if found else None


def _can_run(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _absolute_file(word: str) -> str:
    """Make a script named by a relative path absolute: workers run in directories of their own."""
    return str(absolute(word)) if os.sep in word and os.path.isfile(word) else word


def _version_beside(program: Path) -> str | None:
    """Read the version from the dist-info of the environment the program belongs to."""
    for info in _packages_beside(program, "vllm-*.dist-info"):
        return info.name.removeprefix("vllm-").removesuffix(".dist-info")
    return None


def _cuda_beside(program: Path) -> tuple[int, int] | None:
    """Read the CUDA of the environment's torch from the file in which its build notes it."""
    for file in _packages_beside(program, "torch/version.py"):
        with contextlib.suppress(OSError, ValueError):
            if found := _CUDA.search(file.read_text("utf-8")):
                return int(found[1]), int(found[2])
    return None


def _packages_beside(program: Path, pattern: str) -> list[Path]:
    return sorted(program.parent.parent.glob(f"lib/python3*/site-packages/{pattern}"))
