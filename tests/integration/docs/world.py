"""A machine for a page: a home, the programs that the page names, GPUs, a hub, and ports of its own."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.integration.conftest import BIN, FAKE_VLLM, ask
from tests.support.fake_hub import FakeHub
from tests.support.nvml import GIB, Gpu, StandIn, gpus
from tests.support.ports import free_ports
from tests.support.processes import ProcessLedger
from vllm_stack.layout import Layout

from .pages import ROOT

CONFIGS = ROOT / "tests" / "unit" / "configs"
# What a page finds in the directory where it works: a checkout, in which everything is a link but what
# `make` looks at and writes to.
CHECKOUT = ("Makefile", "pyproject.toml", "vllm_stack", "templates", "tests", "benchmarks", "docs")
# In place of `bin/vllm`. It names the module that the real one names, so the options are read from the
# sources of the real vLLM beside its Python, where there is one: a page that names another is refused. Its
# servers tell (`/fake/state`) as which file it was called.
VLLM = """#!{python}
# vllm.entrypoints.cli.main
import os, sys
os.environ["VLLM_INSTALLED_AS"] = __file__
os.execv(sys.executable, [sys.executable, {fake!r}, *sys.argv[1:]])
"""
PATIENCE = 60.0
LLAMA_70B_BYTES = 141_107_412_992


@dataclass(frozen=True)
class Ports:
    """Those that a page speaks of by their defaults; `elsewhere` stands for a server on another box."""

    door: int
    admin: int
    elsewhere: int
    base: int

    @classmethod
    def take(cls) -> Ports:
        # Behind the base there are as many as a page has workers: on eight GPUs of which one is in use.
        return cls(*free_ports(3 + 7)[:4])


def add_models(hub: FakeHub) -> None:
    """Give the hub the models that the pages name, with a few bytes for weights."""
    config = (CONFIGS / "qwen3-8b.json").read_bytes()
    files = {"config.json": config, "tokenizer.json": b"{}", "model.safetensors": b"weights!" * 64}
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "Qwen/Qwen3-Embedding-0.6B", "openai/whisper-large-v3"):
        hub.add(name, files)
    hub.repositories["Qwen/Qwen3-8B"].commit({**files, "tokenizer.json": b"{ }"}, "v2")


def eight_gpus() -> tuple[Gpu, ...]:
    """Make the box of docs/checks.md: the last of eight is in use."""
    *free, _ = gpus(8)
    return (*free, Gpu("GPU-7777aaaa-0000", used=70 * GIB, processes=((os.getpid(), 70 * GIB),)))


class World:
    """Where a page is worked through; as a context manager it ends what is left and fails for it."""

    def __init__(self, home: Path, library: Path, hub: FakeHub) -> None:
        self.home = home
        self.ports = Ports.take()
        (home / "box").mkdir()
        self.box = StandIn(library, home / "box")
        self.box.show(*eight_gpus())
        self.programs = home / "vllm" / "bin"
        self._write_programs()
        # An error is then an exit code, as a reader sees it.
        (home / ".curlrc").write_text("fail\n")
        self._write_checkout()
        self._write_model()
        self.env = self._environment(hub)
        self.ledger = ProcessLedger(home, settle=10)
        self.keys: list[str] = []  # that were made on the page
        self.layouts = [Layout.at(home / "out"), Layout.at(home / "tmp/balancer")]

    def run(self, *words: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run a program in the home to its end."""
        return subprocess.run(
            words,
            cwd=self.home,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    @property
    def has_stack(self) -> bool:
        """Something was rendered, and serves unless it was stopped."""
        return self.layouts[0].stack_json.exists()

    def filled(self, text: str) -> str:
        """Give the text with the ports and the home of this world in the place of their names."""
        return text.format(door=self.ports.door, elsewhere=self.ports.elsewhere, home=self.home)

    def serves(self) -> bool:
        """Tell whether every model has a ready server, and every worker is ready."""
        workers = json.loads(ask(self.ports.admin, path="/workers")[1])["workers"]
        local = [worker["state"] for worker in workers if worker["name"].startswith("worker-")]
        return set(local) <= {"ready"} and ask(self.ports.door)[0] == 200

    def down(self) -> None:
        """Stop what a page has left running; AssertionError if that does not go well."""
        for layout in self.layouts:
            if layout.stack_json.exists():
                done = self.run("vllm-stack", "down", "--out", str(layout.out))
                assert done.returncode == 0, done.stdout + done.stderr

    def _write_programs(self) -> None:
        """Install the fake vLLM and what the Makefile tells a box with a driver by; all else is real."""
        self.programs.mkdir(parents=True)
        # So its version is known.
        (self.programs.parent / "lib/python3.11/site-packages/vllm-0.32.0.dist-info").mkdir(parents=True)
        vllm = self.programs / "vllm"
        vllm.write_text(VLLM.format(python=sys.executable, fake=str(FAKE_VLLM)))
        driver = self.programs / "nvidia-smi"
        driver.write_text("#!/bin/sh\n")
        for program in (vllm, driver):
            program.chmod(0o755)

    def _write_checkout(self) -> None:
        for name in CHECKOUT:
            (self.home / name).symlink_to(ROOT / name)
        (self.home / ".venv").mkdir()
        for part in BIN.parent.glob("[!.]*"):
            (self.home / ".venv" / part.name).symlink_to(part)
        # Younger than all that it is made from, so nothing is installed by the targets that need it.
        (self.home / ".venv" / ".stack-installed").touch()

    def _write_model(self) -> None:
        """Write the model of docs/checks.md, without its weights: an index tells how large they are."""
        model = self.home / "srv" / "Llama-3.1-70B-Instruct"
        model.mkdir(parents=True)
        shutil.copy(CONFIGS / "llama-3.1-70b.json", model / "config.json")
        index = {"metadata": {"total_size": LLAMA_70B_BYTES}, "weight_map": {"w": "model-1.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    def _environment(self, hub: FakeHub) -> dict[str, str]:
        """Make it anew: what is set where the tests run (by `make`, say) is not set for a reader."""
        return {
            "PATH": f"{self.programs}:{BIN}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            **self.box.environment,
            "HF_ENDPOINT": hub.endpoint,
            "NO_PROXY": "*",
            "VLLM_STACK_PORT": str(self.ports.door),
            "VLLM_STACK_ADMIN_PORT": str(self.ports.admin),
            "VLLM_STACK_BASE_PORT": str(self.ports.base),
            # `vllm` is looked for beside our Python first, where the real one is.
            "VLLM_STACK_VLLM_COMMAND": str(self.programs / "vllm"),
            "VLLM_COMMAND": shlex.quote(str(self.programs / "vllm")),
            # The vLLM beside the tests is built for the CPU, and the box has GPUs.
            "VLLM_STACK_SKIP_CHECK": "vllm-build",
            # 6 s at each level would give better figures; nobody looks at them.
            "VLLM_STACK_BENCH_DURATION": "0.1",
            # A page that has a test run is right if there is such a test.
            "PYTEST_ADDOPTS": "--collect-only",
        }

    def __enter__(self) -> World:
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            self.down()
        finally:
            self._end(*failure)

    def _end(self, *failure: object) -> None:
        try:
            self.ledger.__exit__(*failure)  # type: ignore[arg-type]
        finally:
            for layout in self.layouts:
                if layout.socket.parent != layout.run:
                    shutil.rmtree(layout.socket.parent, ignore_errors=True)
