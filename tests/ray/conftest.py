"""Clusters of real Ray with real vLLM on the CPU: every box is a stack of its own on this machine."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests

from tests.e2e.conftest import BIN, KEY, RealStack, client, tiny_model
from tests.support.polling import until
from tests.support.ports import free_ports
from tests.support.processes import ProcessLedger
from vllm_stack.layout import Layout
from vllm_stack.ports import RAYS

__all__ = ["tiny_model"]  # the fixture of the end-to-end tests
# What clients call the model: a name of its own, and an alias.
NAME, ALIAS = "tiny", "writer"
READY = 300.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two cores start an engine in a minute or two, and a cluster before it."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(900))
            if not (BIN / "ray").exists():
                item.add_marker(pytest.mark.skip(reason="Ray is not installed here: `make test-ray` does it"))


def own_address() -> str:
    """Give an address of this machine that is not loopback, by which boxes reach each other."""
    addresses = [
        one.address for own in psutil.net_if_addrs().values() for one in own if one.family == socket.AF_INET
    ]
    return next((address for address in addresses if not address.startswith("127.")), "127.0.0.1")


def port_for_ray() -> int:
    """Give a free port outside of those that Ray takes for its processes."""
    return until(
        lambda: next((port for port in free_ports(1) if port not in RAYS), None), 5, "a port is free"
    )


class Head(RealStack):
    """The head of a cluster, with the door."""

    def __init__(self, home: Path, ledger: ProcessLedger) -> None:
        super().__init__(home, ledger, workers=1)
        self.worker_ports = [port_for_ray()]
        self.port, self.admin_port, self.ray_port, self.dashboard_port = (port_for_ray() for _ in range(4))
        self.replicas = 1
        self.cores: str | None = None
        self.before = shared_memory()

    def render_for_ray(self, model: Path, *words: str) -> None:
        """Render it, with the model under a name and an alias; a failed start is tried again soon."""
        served = ["--served-model-name", NAME, ALIAS]
        options = {
            "--target": "ray",
            "--ray-port": str(self.ray_port),
            "--ray-dashboard-port": str(self.dashboard_port),
            "--workers": str(self.replicas),
            "--restart-delay": "1",
        }
        pairs = [word for pair in self._options(**options).items() for word in pair]
        self._render(str(model), *pairs, *words, "--", "--max-model-len", "1024", *served)

    def vllm_stack(self, *words: str) -> Any:
        pinned = ["taskset", "-c", self.cores] if self.cores else []
        return self._run(*pinned, str(BIN / "vllm-stack"), *words)

    def wait(self) -> None:
        result = self.vllm_stack("wait", "--timeout", f"{READY:.0f}")
        assert result.returncode == 0, result.stdout + result.stderr + self.log("ray")[-4000:]

    @property
    def token(self) -> Path:
        return self.layout.ray_token

    def ask(self, path: str) -> Any:
        """Ask Ray's dashboard."""
        headers = {"Authorization": f"Bearer {self.token.read_text().strip()}"}
        answer = requests.get(f"http://127.0.0.1:{self.dashboard_port}{path}", headers=headers, timeout=20)
        answer.raise_for_status()
        return answer.json()

    def replicas_of_engines(self) -> list[dict[str, Any]]:
        """Give what Ray says of every replica that runs the model."""
        deployments = self.ask("/api/serve/applications/")["applications"]["vllm"]["deployments"]
        return [
            one for name, found in deployments.items() if "LLMServer" in name for one in found["replicas"]
        ]

    def running(self) -> list[dict[str, Any]]:
        return [one for one in self.replicas_of_engines() if one["state"] == "RUNNING"]


class Member:
    """A box that joins."""

    def __init__(self, home: Path, ledger: ProcessLedger, head: Head, cores: str) -> None:
        self.home, self.ledger, self.head, self.cores = home, ledger, head, cores
        self.layout = Layout.at(home / "out")
        self.agent_port = port_for_ray()

    def join(self, *words: str, head: str | None = None, token: Path | None = None) -> Any:
        """Run `vllm-stack join --detach`; what it started is the ledger's."""
        self.ledger.watch(self.layout.out)
        return self.head._run(
            *("taskset", "-c", self.cores, str(BIN / "vllm-stack"), "join"),
            head or f"{own_address()}:{self.head.ray_port}",
            *(
                "--token-file",
                str(token or self.head.token),
                "--device",
                "cpu",
                "--out",
                str(self.layout.out),
            ),
            *("--agent-port", str(self.agent_port), "--restart-delay", "1", "--detach", *words),
        )

    def raylet(self) -> psutil.Process:
        """Find the process that makes this box one of the cluster's."""
        mine = str(self.layout.ray_temp)
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words and words[0].endswith("/raylet") and any(mine in word for word in words):
                return process
        raise LookupError("no raylet of this box runs")

    def down(self) -> None:
        self.head._run(str(BIN / "vllm-stack"), "down", "--out", str(self.layout.out))


def shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))  # noqa: S108


def answer_of(head: Head, model: str = NAME, tokens: int = 5) -> Any:
    with client(head) as api:
        return chat(api, model, tokens)


def chat(api: openai.OpenAI, model: str = NAME, tokens: int = 5, **more: Any) -> Any:
    said = f"It is {time.time()}"  # another prefix each time
    return api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": said}], max_tokens=tokens, **more
    )


@pytest.fixture(scope="module")
def ledger() -> Iterator[ProcessLedger]:
    with ProcessLedger(grace=90) as ledger:
        yield ledger
    for home in ledger.directories:
        # pytest's paths are too long for sockets: the sessions of Ray are below /tmp.
        temp = Layout.at(home).ray_temp
        if not temp.is_relative_to(home):
            shutil.rmtree(temp.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, ledger: ProcessLedger) -> Head:
    """One box, the whole of its cluster, which serves."""
    stack = Head(tmp_path_factory.mktemp("head"), ledger)
    stack.render_for_ray(tiny_model)
    stack.start()
    stack.wait()
    return stack


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def shape(value: Any) -> Any:
    """Give what a JSON value is made of: its keys and kinds, without what it says."""
    if isinstance(value, dict):
        return {key: shape(one) for key, one in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


__all__ += ["KEY", "until"]
