"""Compiles the part in C when vllm-stack is installed or packed: a build hook of hatchling.

Where that cannot be done, for want of a compiler or of Python's headers, the installation goes on
without it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("vllm_stack/native/pump.c")
# One build serves Python 3.11 and all later versions: pump.c keeps to the limited API.
MODULE = SOURCE.with_name("_pump.abi3.so")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")


class NativeBuild(BuildHookInterface[BuilderConfig]):
    """Puts the compiled module beside its source, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; without success the wheel is one for any machine."""
        root = Path(self.root)
        try:
            compile_module(root)
        except (OSError, subprocess.CalledProcessError) as error:
            (root / MODULE).unlink(missing_ok=True)  # what an older source gave
            said = getattr(error, "stderr", None) or error
            self.app.display_warning(f"vllm-stack goes without its part in C, streams cost more CPU: {said}")
            return
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"cp311-abi3-{platform}"
        build_data["artifacts"].append(f"/{MODULE}")


def compile_module(root: Path) -> None:
    """Compile beside the place and move it there: a proxy that runs keeps the module it has loaded.

    Raises `OSError` where there is no compiler, `CalledProcessError` where it does not succeed.
    """
    new = root / MODULE.with_suffix(f".{os.getpid()}")
    # The same bytes wherever the source lies.
    anywhere = (f"-ffile-prefix-map={root}=.", "-Wl,--build-id=none")
    headers = f"-I{sysconfig.get_path('include')}"
    argv = [*_compiler(), *_FLAGS, *anywhere, headers, str(root / SOURCE), "-o", str(new)]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True)
        new.replace(root / MODULE)
    finally:
        new.unlink(missing_ok=True)


def _compiler() -> list[str]:
    """Give what the environment names, else what Python was built with, else the system's."""
    for command in (os.environ.get("CC"), sysconfig.get_config_var("CC")):
        words = shlex.split(command or "")
        if words and shutil.which(words[0]):
            return words
    return ["cc"]
