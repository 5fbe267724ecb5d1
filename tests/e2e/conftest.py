"""Stacks of real vLLM servers on the CPU, with tiny random models, for all end-to-end tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tomli_w

from tests.support.ports import free_ports
from tests.support.processes import ProcessLedger
from vllm_stack.layout import Layout

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
KEY = "sk-end-to-end"


class RealStack:
    """A rendered stack with real vLLM, and the operator's commands on it."""

    def __init__(self, home: Path, ledger: ProcessLedger, workers: int = 2) -> None:
        self.home = home
        self.layout = Layout.at(home / "out")
        self.ledger = ledger
        self.worker_ports = free_ports(workers)
        self.port, self.admin_port = free_ports(2)
        self.options: dict[str, str] = {}

    def render(self, model: Path, *vllm_arguments: str) -> None:
        workers = str(len(self.worker_ports))
        words = [word for pair in self._options(**{"--workers": workers}).items() for word in pair]
        # The last one counts.
        self._render(str(model), *words, "--", "--max-model-len", "1024", *vllm_arguments)

    def render_models(self, *models: dict[str, Any]) -> None:
        """Render a stack of several models, by a file."""
        file = self.home / "stack.toml"
        stack = {name.removeprefix("--"): value for name, value in self._options().items()}
        file.write_text(tomli_w.dumps({**stack, "model": models}))
        self._render("-f", "stack.toml")

    def _options(self, **more: str) -> dict[str, str]:
        return {
            **more,
            "--device": "cpu",
            "--base-port": str(self.worker_ports[0]),
            "--port": str(self.port),
            "--admin-port": str(self.admin_port),
            "--api-key": KEY,
            "--host": "127.0.0.1",
            "--out": "out",
            **self.options,
        }

    def _render(self, *words: str) -> None:
        assert (BIN / "vllm").exists(), "vLLM is not installed here: run `make install`"
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        result = self.vllm_stack("render", *words)
        assert result.returncode == 0, result.stderr
        self.ledger.title_prefix = f"vllm-stack:{self.name}"

    def start(self) -> subprocess.Popen[bytes]:
        self.ledger.watch(self.layout.out)
        return self.ledger.start(
            [BIN / "supervisord", "-c", "out/supervisord.conf"],
            cwd=self.home,
            log=self.home / "supervisord.out",
        )

    def vllm_stack(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(BIN / "vllm-stack"), *words)

    def supervisorctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(str(BIN / "supervisorctl"), "-c", "out/supervisord.conf", *words)

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, cwd=self.home, capture_output=True, text=True, check=False, timeout=600)

    def wait(self) -> None:
        result = self.vllm_stack("wait", "--timeout", "600")
        assert result.returncode == 0, result.stdout + result.stderr

    def log(self, name: str) -> str:
        return (self.layout.logs / f"{name}.log").read_text("utf-8", "replace")

    @property
    def name(self) -> str:
        return str(json.loads(self.layout.stack_json.read_text())["name"])


def client(stack: RealStack, key: str = KEY) -> openai.OpenAI:
    """A client that never tries again by itself: what fails is seen."""
    return client_at(stack.port, key)


def client_at(port: int, key: str) -> openai.OpenAI:
    """Such a client, at one of the stack's ports."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120)


def make_model(module: str, path: Path) -> Path:
    """Have a model made in another process, because it needs torch."""
    subprocess.run([sys.executable, "-m", module, str(path)], cwd=REPOSITORY, check=True, timeout=300)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 100,000 parameters."""
    return make_model("tests.tiny_model", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def real_stack(tmp_path: Path, tiny_model: Path) -> Iterator[RealStack]:
    """A rendered stack that was not started; the test fails if a process of it is left at its end."""
    with ProcessLedger(grace=60) as ledger:
        stack = RealStack(tmp_path, ledger)
        stack.render(tiny_model)
        yield stack
