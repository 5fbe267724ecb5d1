"""Where the sources of the vLLM are that a command runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

_SCRIPT_BYTES = 4096
_CONSOLE_SCRIPT = b"vllm.entrypoints.cli.main"
_VLLM_MODULES = ("vllm", "vllm.entrypoints.cli.main")
_NO_PTH_PATH = ("#", "import ", "import\t")
_PACKAGES = ("lib/python3*/site-packages", "lib/python3*/dist-packages", "lib64/python3*/site-packages")


def find_package(program: Path, argv: Sequence[str]) -> Path | None:
    """Find the directory of the `vllm` package that a command runs; None unless it is certainly that one."""
    if len(argv) == 1:
        script = _head(program)
        if _CONSOLE_SCRIPT not in script:
            return None
        # A link stands where the user looks for programs, not where the environment is.
        prefixes = [program.resolve().parent.parent, *_interpreter_prefix(script)]
    elif argv[1] == "-m" and tuple(argv[2:3]) in [(module,) for module in _VLLM_MODULES]:
        prefixes = [program.parent.parent]
        if not (prefixes[0] / "pyvenv.cfg").is_file():
            prefixes.append(program.resolve().parent.parent)
    else:
        return None
    for prefix in prefixes:
        packages = {path.resolve() for path in _packages_below(prefix)}
        if packages:
            # Two Pythons with a vLLM each: which of them runs is not ours to guess.
            return packages.pop() if len(packages) == 1 else None
    return None


def _head(program: Path) -> bytes:
    try:
        with program.open("rb") as stream:
            return stream.read(_SCRIPT_BYTES)
    except OSError:
        return b""


def _interpreter_prefix(script: bytes) -> list[Path]:
    """Give the environment that the first line of a script names."""
    match = re.match(rb"#!\s*(/\S+)", script)
    return [Path(os.fsdecode(match[1])).parent.parent] if match else []


def _packages_below(prefix: Path) -> Iterator[Path]:
    """Find vLLM in an environment: installed, or an editable install that points to its sources."""
    for pattern in _PACKAGES:
        for packages in sorted(prefix.glob(pattern)):
            roots = (packages, *_editable_roots(packages))
            yield from [root / "vllm" for root in roots if (root / "vllm" / "__init__.py").is_file()][:1]


def _editable_roots(packages: Path) -> Iterator[Path]:
    """Read where editable installs are, from direct_url.json (PEP 610) and the lines of *.pth files."""
    for path in sorted(packages.glob("vllm*.dist-info/direct_url.json")):
        try:
            told = json.loads(path.read_text("utf-8"))
            url = urlsplit(str(told["url"]))
            if url.scheme == "file" and told["dir_info"]["editable"] is True:
                yield from (Path(unquote(url.path)), Path(unquote(url.path)) / "src")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    for path in sorted(packages.glob("*.pth")):
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, ValueError):
            continue
        yield from (packages / line for line in lines if line and not line.startswith(_NO_PTH_PATH))
