"""Compiles the part in C when vllm-stack is installed or packed: a build hook of hatchling.

Where that cannot be done, for want of a compiler or of Python's headers, the installation goes on
without it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("vllm_stack/native/pump.c")
# One build serves Python 3.11 and all later versions: pump.c keeps to the limited API.
MODULE = SOURCE.with_name("_pump.abi3.so")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")


class NativeBuild(BuildHookInterface[BuilderConfig]):
    """Puts the compiled module into the wheel; for an editable installation, beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without success the wheel is one for any machine."""
        root = Path(self.root)
        self._directory = tempfile.TemporaryDirectory(prefix="vllm-stack-")
        module = Path(self._directory.name) / MODULE.name
        try:
            compile_module(root / SOURCE, module)
            if version == "editable":
                put(module, root / MODULE)
        except (OSError, subprocess.CalledProcessError) as error:
            with contextlib.suppress(OSError):  # what an older source gave
                (root / MODULE).unlink()
            said = getattr(error, "stderr", None) or error
            self.app.display_warning(f"vllm-stack goes without its part in C, streams cost more CPU: {said}")
            return
        if version != "editable":
            build_data["force_include"][str(module)] = str(MODULE)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what the wheel has a copy of."""
        self._directory.cleanup()


def compile_module(source: Path, module: Path) -> None:
    """Compile. Raises `OSError` where there is no compiler, `CalledProcessError` where it fails."""
    # The same bytes wherever the source lies.
    anywhere = (f"-ffile-prefix-map={source.parent}=.", "-Wl,--build-id=none")
    headers = f"-I{sysconfig.get_path('include')}"
    argv = [*_compiler(), *_FLAGS, *anywhere, headers, str(source), "-o", str(module)]
    subprocess.run(argv, check=True, capture_output=True, text=True)


def put(module: Path, place: Path) -> None:
    """Put it there in one step: a proxy that runs keeps the module it has loaded. Raises `OSError`."""
    new = place.with_name(f"_pump.{os.getpid()}.so")
    try:
        shutil.copy(module, new)
        new.replace(place)
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def _compiler() -> list[str]:
    """Give what the environment names, else what Python was built with, else the system's."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC")):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return ["cc"]
