"""Real vLLM under real supervisord behind the real proxy: what a user does in the first hour."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import KEY, RealStack, client
from tests.support.polling import until
from tests.support.processes import find_by_directory, is_alive, listeners
from tests.support.promql import questions

pytestmark = pytest.mark.timeout(900)

# Seconds that a stop leaves to open answers; a roll leaves them more.
DRAIN = 4


def worker_states(stack: RealStack) -> dict[str, dict[str, Any]]:
    answer = requests.get(f"http://127.0.0.1:{stack.admin_port}/workers", timeout=10)
    return {worker["name"]: worker for worker in answer.json()["workers"]}


def all_ready(stack: RealStack) -> bool:
    return all(worker["ready"] for worker in worker_states(stack).values())


def tree_of(stack: RealStack, index: int) -> tuple[psutil.Process, list[psutil.Process]]:
    """Give the API server of a worker and everything below it."""
    (pid,) = (pid for pid in listeners(stack.worker_ports[index]) if pid is not None)
    server = psutil.Process(pid)
    return server, server.children(recursive=True)


class Traffic:
    """Short completions, one after another on several threads; every outcome is kept."""

    def __init__(self, stack: RealStack, threads: int = 3) -> None:
        self.answered = 0
        self.failures: list[Exception] = []
        self._stack = stack
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)

    def _run(self) -> None:
        with client(self._stack) as api:
            model = api.models.list().data[0].id
            # With pauses: the worker that loads meanwhile needs the processor more than we do.
            while not self._stop.wait(0.2):
                try:
                    self._ask(api, model)
                    self.answered += 1
                except Exception as error:
                    self.failures.append(error)

    def _ask(self, api: openai.OpenAI, model: str) -> None:
        api.completions.create(model=model, prompt="The worker", max_tokens=8)


def test_a_stack_of_real_vllm_serves_survives_and_stops(real_stack: RealStack, tiny_model: Path) -> None:
    """One start serves all the steps: loading takes most of a minute."""
    stack = real_stack
    stack.options["--drain-timeout"] = str(DRAIN)
    stack.render(tiny_model)
    supervisord = stack.start()
    stack.wait()
    status = stack.supervisorctl("status")
    assert status.stdout.count("RUNNING") + status.stdout.count("STARTING") == 3, status.stdout
    assert requests.get(f"http://127.0.0.1:{stack.port}/health", timeout=10).status_code == 200

    the_openai_client_works(stack)
    vllm_tells_what_the_dashboard_asks_for(stack)
    a_client_that_leaves_frees_its_worker(stack)
    a_killed_server_loses_no_request_and_comes_back(stack)
    a_killed_wrapper_leaves_nothing_in_the_way(stack)
    a_roll_to_other_options_loses_no_request(stack, tiny_model)
    no_secret_is_visible(stack)

    assert stack.vllm_stack("down").returncode == 0
    assert supervisord.wait(10) == 0
    assert find_by_directory(stack.layout.out, f"vllm-stack:{stack.name}") == []
    assert not any(listeners(port) for port in (*stack.worker_ports, stack.port, stack.admin_port))


def the_openai_client_works(stack: RealStack) -> None:
    api = client(stack)
    model = api.models.list().data[0].id
    question: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]
    chat = api.chat.completions.create(model=model, messages=question, max_tokens=16)
    assert chat.choices[0].finish_reason in ("length", "stop")
    assert chat.usage is not None
    assert chat.usage.completion_tokens >= 1
    stream = api.chat.completions.create(model=model, messages=question, max_tokens=16, stream=True)
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    completion = api.completions.create(model=model, prompt="One, two", max_tokens=4)
    assert completion.usage is not None
    assert completion.usage.completion_tokens >= 1
    with pytest.raises(openai.AuthenticationError) as refused:
        client(stack, "wrong").models.list()
    assert refused.value.code == "invalid_api_key"
    # The workers have a key of their own, and none of the client's works there.
    direct = f"http://127.0.0.1:{stack.worker_ports[0]}/v1/models"
    assert requests.get(direct, headers={"authorization": f"Bearer {KEY}"}, timeout=10).status_code == 401


def vllm_tells_what_the_dashboard_asks_for(stack: RealStack) -> None:
    text = requests.get(f"http://127.0.0.1:{stack.admin_port}/metrics", timeout=10).text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    workers: dict[str, set[str]] = {}
    for sample in (sample for family in families for sample in family.samples):
        workers.setdefault(sample.name, set()).add(sample.labels.get("worker", ""))
    board = json.loads((stack.layout.monitoring / "grafana.json").read_text("utf-8"))
    targets = [target for panel in board["panels"] for target in panel.get("targets", ())]
    asked = {one.metric for target in targets for one in questions(target["expr"])[0]}
    for metric in (metric for metric in asked if not metric.startswith("vllm_stack_")):
        assert workers.get(metric) == {"worker-0", "worker-1"}, metric


def a_client_that_leaves_frees_its_worker(stack: RealStack) -> None:
    """Then fewer tokens are made than were asked for.

    This model makes a thousand in four seconds, for which a small machine can stand still: some
    streams are over before their first event is here, so it may take several tries.
    """
    api = client(stack)
    model = api.models.list().data[0].id
    for _ in range(12):
        before = figure(stack, "vllm:generation_tokens_total")
        stream = api.completions.create(
            model=model, prompt="One", max_tokens=1000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
        until(lambda: figure(stack, "vllm:num_requests_running") == 0, 30, "the request was ended")
        until(
            lambda: all(worker["in_flight"] == 0 for worker in worker_states(stack).values()),
            30,
            "nothing is in flight",
        )
        if figure(stack, "vllm:generation_tokens_total") - before < 1000:
            return
    raise AssertionError("every stream was generated to its end, though its client had left")


def figure(stack: RealStack, name: str) -> int:
    """Add up one of vLLM's own figures over all workers."""
    total = 0.0
    for port in stack.worker_ports:
        metrics = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        lines = [line.split() for line in metrics.splitlines() if line.startswith(name + "{")]
        assert lines, f"port {port} does not tell {name}"
        total += sum(float(words[-1]) for words in lines)
    return int(total)


def a_killed_server_loses_no_request_and_comes_back(stack: RealStack) -> None:
    server, below = tree_of(stack, 0)
    other, _ = tree_of(stack, 1)
    assert any("EngineCore" in " ".join(process.cmdline()) for process in below)
    with Traffic(stack) as traffic:
        until(lambda: traffic.answered > 20, 60, "requests are answered")
        killed = time.monotonic()
        server.send_signal(signal.SIGKILL)
        until(lambda: not worker_states(stack)["worker-0"]["ready"], 5, "the proxy noticed")
        until(lambda: not any(is_alive(p.pid) for p in (server, *below)), 15, "the whole tree is gone")
        until(
            lambda: "STARTING" in stack.supervisorctl("status", "workers:worker-0").stdout,
            10,
            "supervisord says that the worker is starting",
        )
        before = traffic.answered
        until(lambda: traffic.answered > before + 20, 60, "the other worker goes on")
        until(lambda: all_ready(stack), 300, "the worker is back")
        back = time.monotonic() - killed
        before = traffic.answered
        until(lambda: traffic.answered > before + 20, 60, "both work")
    assert traffic.failures == []
    assert back >= 30, "the worker must wait 30 s before it starts again"
    assert is_alive(other.pid), "the other worker was never touched"
    assert "was killed by SIGKILL" in stack.log("worker-0")


def a_killed_wrapper_leaves_nothing_in_the_way(stack: RealStack) -> None:
    """Nobody reaps the tree then; the next start must find the renamed engine by what it still shows."""
    server, below = tree_of(stack, 1)
    wrapper = server.parent()
    assert wrapper is not None
    engines = [process for process in below if "EngineCore" in " ".join(process.cmdline())]
    assert engines
    wrapper.send_signal(signal.SIGKILL)
    until(lambda: not worker_states(stack)["worker-1"]["ready"], 1, "the proxy noticed at once, unasked")
    until(lambda: not any(is_alive(p.pid) for p in (server, *below)), 30, "the next start swept the tree")
    until(lambda: all_ready(stack), 300, "the worker is back")
    assert f"killing process {engines[0].pid}" in stack.log("worker-1")


def a_roll_to_other_options_loses_no_request(stack: RealStack, model: Path) -> None:
    """Under load, with streams that last for longer than a stop would leave them."""
    before = [tree_of(stack, index)[0].pid for index in (0, 1)]
    stack.render(model, "--max-model-len", "1000")
    with Traffic(stack) as traffic, Streams(stack) as streams:
        rolled = stack.vllm_stack("roll")
        assert rolled.returncode == 0, rolled.stdout + rolled.stderr
        served = traffic.answered
        until(lambda: traffic.answered > served + 20, 60, "both work")
    assert traffic.failures == []
    assert streams.failures == []
    assert streams.longest > DRAIN, "no stream was long enough to prove anything"
    assert not {tree_of(stack, index)[0].pid for index in (0, 1)} & set(before)
    limits = [model_at(stack, port)["max_model_len"] for port in stack.worker_ports]
    assert limits == [1000, 1000]
    assert stack.vllm_stack("status").returncode == 0


def model_at(stack: RealStack, port: int) -> dict[str, Any]:
    """Ask a worker itself what it serves."""
    key = stack.layout.internal_key.read_text().strip()
    answer = requests.get(
        f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {key}"}, timeout=10
    )
    model: dict[str, Any] = answer.json()["data"][0]
    return model


class Streams(Traffic):
    """Long streams, one after another; each must come to its end."""

    def __init__(self, stack: RealStack) -> None:
        super().__init__(stack, threads=2)
        self.longest = 0.0

    def _ask(self, api: openai.OpenAI, model: str) -> None:
        begun = time.monotonic()
        stream = api.completions.create(
            model=model, prompt="On", max_tokens=900, stream=True, extra_body={"ignore_eos": True}
        )
        finish = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices]
        assert finish[-1] == "length", finish[-1]
        self.longest = max(self.longest, time.monotonic() - begun)


def no_secret_is_visible(stack: RealStack) -> None:
    internal = stack.layout.internal_key.read_text().strip()
    for process in find_by_directory(stack.layout.out, f"vllm-stack:{stack.name}"):
        words = " ".join(process.cmdline())
        assert internal not in words
        assert KEY not in words
    for path in (stack.layout.supervisord_conf, *stack.layout.logs.iterdir()):
        text = path.read_text("utf-8", "replace")
        assert internal not in text, path
        assert KEY not in text, path


@pytest.mark.parametrize("seconds", [0.5, 1.2, 4.0, 14.0])
def test_ctrl_c_while_real_vllm_loads_leaves_nothing(real_stack: RealStack, seconds: float) -> None:
    """The moment of the key press is what is tested, so it is waited for by the clock."""
    supervisord = real_stack.start()
    pressed = time.monotonic() + seconds
    until(lambda: time.monotonic() >= pressed, seconds + 5, "the moment has come")
    supervisord.send_signal(signal.SIGINT)
    supervisord.wait(60)
    assert find_by_directory(real_stack.layout.out, f"vllm-stack:{real_stack.name}") == []
    assert "SIGKILL" not in (real_stack.home / "supervisord.out").read_text()
