"""Real vLLM that hangs, computes for long, or is killed all at once: what is seen, kept and cleaned up."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.e2e.conftest import KEY, RealStack
from tests.e2e.test_real_vllm import all_ready, tree_of, worker_states
from tests.support.polling import until
from tests.support.processes import ProcessLedger, find_by_directory, is_alive
from vllm_stack.leftovers.shared_memory import SHM

pytestmark = pytest.mark.timeout(900)

PATIENCE = 8.0  # seconds: a small machine can stand still for six while engines compute
CONTEXT = 60_000


@pytest.fixture
def watched(tiny_model: Path) -> Iterator[RealStack]:
    """A stack that loses its patience soon, with a context that makes long steps.

    Its path is short: only then do the temporary files of a worker lie in its own directory.
    """
    with tempfile.TemporaryDirectory(prefix="stack-") as home, ProcessLedger(grace=60) as ledger:
        stack = RealStack(Path(home), ledger)
        stack.options = {
            "--wedge-timeout": f"{PATIENCE:g}",
            "--restart-delay": "2",
            "--start-stagger": "none",
            "--policy": "least-loaded",  # so that several requests are with both workers
        }
        stack.render(
            tiny_model,
            *("--max-model-len", str(CONTEXT), "--max-num-batched-tokens", str(CONTEXT)),
            *("--hf-overrides", json.dumps({"max_position_embeddings": 65536})),
        )
        yield stack


class Request(threading.Thread):
    """One completion, asked for beside the test; its outcome is kept."""

    def __init__(self, stack: RealStack, **settings: Any) -> None:
        super().__init__(daemon=True)
        self.outcome: int | Exception | None = None
        self._url = f"http://127.0.0.1:{stack.port}/v1/completions"
        self._body = {"max_tokens": 4, "ignore_eos": True, **settings}
        self.start()

    def run(self) -> None:
        with requests.Session() as session:
            session.headers["authorization"] = f"Bearer {KEY}"
            models = session.get(self._url.replace("completions", "models"), timeout=60).json()
            body = {"model": models["data"][0]["id"], **self._body}
            try:
                # Read in here, so that the connection of an answer that breaks off is closed, too.
                with session.post(self._url, json=body, timeout=300, stream=True) as answer:
                    self.outcome = answer.status_code if answer.content else None
            except requests.RequestException as error:
                self.outcome = error


def engine_of(stack: RealStack, index: int) -> psutil.Process:
    _, below = tree_of(stack, index)
    (engine,) = (p for p in below if f"worker-{index}::EngineCore" in " ".join(p.cmdline()))
    return engine


def failure(stack: RealStack, index: int) -> dict[str, Any]:
    path = stack.layout.state / f"worker-{index}.failure.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def in_flight(stack: RealStack, index: int) -> int:
    return int(worker_states(stack)[f"worker-{index}"]["in_flight"])


def test_a_hang_is_found_a_long_step_is_not_one_and_a_kill_of_everything_leaves_nothing(
    watched: RealStack,
) -> None:
    """One start serves all the steps: loading takes most of a minute."""
    stack = watched
    supervisord = stack.start()
    stack.wait()
    a_long_prefill_is_left_alone(stack)
    engines_that_hang_are_ended_with_evidence_and_come_back(stack)
    what_a_kill_of_everything_leaves_is_removed(stack, supervisord.pid)


def a_long_prefill_is_left_alone(stack: RealStack) -> None:
    servers = [tree_of(stack, index)[0].pid for index in (0, 1)]
    # How long is long enough depends on the machine: longer and longer ones, until one is.
    length, took = CONTEXT / 8, 0.0
    while took < 1.2 * PATIENCE:
        assert length <= CONTEXT, f"a step of {took:.1f} s proves nothing: make the context longer"
        took = prefill(stack, round(length) - 10)
        length *= 1.25
    assert [failure(stack, index) for index in (0, 1)] == [{}, {}]
    assert [tree_of(stack, index)[0].pid for index in (0, 1)] == servers


def prefill(stack: RealStack, length: int) -> float:
    """Have so many tokens computed in one step; gives the seconds it took."""
    begun = time.monotonic()
    # Another beginning each time, or the prefix cache would do the work.
    prompt = [10 + (index + round(begun * 1000)) % 300 for index in range(length)]
    request = Request(stack, prompt=prompt, max_tokens=1)
    request.join(300)
    assert request.outcome == 200, request.outcome
    return time.monotonic() - begun


def engines_that_hang_are_ended_with_evidence_and_come_back(stack: RealStack) -> None:
    """One is stopped under load, the other while it is idle: the next request finds it."""
    trees = [[server, *below] for server, below in (tree_of(stack, 0), tree_of(stack, 1))]
    engines = [engine_of(stack, index) for index in (0, 1)]
    busy = stop_under_load(stack, engines[0])
    until(lambda: not any(is_alive(p.pid) for p in trees[0]), 30, "its tree is gone")
    check_evidence(stack, 0, engines[0].pid)

    for request in busy:
        request.join(300)
    until(lambda: all_ready(stack), 300, "it is back")
    until(lambda: in_flight(stack, 1) == 0, 30, "the second is idle")
    engines[1].send_signal(signal.SIGSTOP)
    late = [Request(stack, prompt=f"{index} proxies", max_tokens=4) for index in range(8)]
    until(lambda: in_flight(stack, 1) > 0, 30, "a request has met it")
    until(lambda: failure(stack, 1).get("cause"), 180, "the second hang is found")
    until(lambda: not any(is_alive(p.pid) for p in trees[1]), 30, "its tree is gone")
    check_evidence(stack, 1, engines[1].pid)
    for request in late:
        request.join(300)
    # Nothing had been answered when it was killed, so all of them went to the other worker.
    assert [request.outcome for request in late] == [200] * len(late)
    until(lambda: all_ready(stack), 300, "it is back")


def stop_under_load(stack: RealStack, engine: psutil.Process) -> list[Request]:
    """Stop the first worker's engine at work, until that is found; gives the requests of both workers.

    A small machine can stand still for seconds while engines compute: when all was answered before
    the signal came, it is done again.
    """
    server, _ = tree_of(stack, 0)
    health = f"http://127.0.0.1:{stack.worker_ports[0]}/health"

    def answered() -> bool:
        return in_flight(stack, 0) == 0 and is_alive(server.pid)

    for _ in range(6):
        busy = [Request(stack, prompt=f"{index} workers", max_tokens=2000, stream=True) for index in range(8)]
        until(partial(at_work_or_over, stack, busy), 120, "both are at work, or all is answered")
        engine.send_signal(signal.SIGSTOP)
        with contextlib.suppress(requests.RequestException):  # the machine may stand still meanwhile
            assert requests.get(health, timeout=10).status_code == 200
        until(lambda: failure(stack, 0).get("cause") or answered(), 180, "the first hang is found")
        if failure(stack, 0).get("cause"):
            return busy
        engine.send_signal(signal.SIGCONT)
        for request in busy:
            request.join(300)
    raise AssertionError("the engine was never stopped before it had answered everything")


def at_work_or_over(stack: RealStack, busy: list[Request]) -> bool:
    both = in_flight(stack, 0) > 0 and in_flight(stack, 1) > 0
    return both or not any(request.is_alive() for request in busy)


def check_evidence(stack: RealStack, index: int, engine: int) -> None:
    told = failure(stack, index)
    assert "its engine made no step" in told["cause"]
    case = Path(told["evidence"])
    assert case.parent == stack.layout.evidence
    assert "vllm:iteration_tokens_total_count" in (case / "metrics.txt").read_text()
    assert f"{engine} parent" in (case / "processes.txt").read_text()
    stack_of_engine = (case / f"stack-{engine}.txt").read_text()
    assert "run_busy_loop" in stack_of_engine or "ptrace" in stack_of_engine.lower()


def what_a_kill_of_everything_leaves_is_removed(stack: RealStack, supervisord: int) -> None:
    record = stack.layout.state / "worker-0.shm.json"
    names = json.loads(record.read_text())["names"]
    assert any(name.startswith("psm_") for name in names), names
    temporary = list((stack.layout.box("worker-0") / "tmp").glob("vllm_dist_*"))
    assert temporary, "vLLM makes its files in the directory that is the worker's own"
    everything = find_by_directory(stack.layout.out, f"vllm-stack:{stack.name}")
    engines = [engine_of(stack, index) for index in (0, 1)]
    spared = {process.pid for engine in engines for process in (engine, *engine.children(recursive=True))}
    victims = [process.pid for process in everything if process.pid not in {supervisord, *spared}]
    wrappers = [tree_of(stack, index)[0].ppid() for index in (0, 1)]
    stack.ledger.remember()
    # Nobody gets to react to the end of another: supervisord stands still, the wrappers go first. They and
    # what is below them are not stopped, since the kernel hangs up on an orphaned group with one that is.
    os.kill(supervisord, signal.SIGSTOP)
    for pid in (*wrappers, *victims, supervisord):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in (*victims, supervisord)), 10, "they are dead")
    dead = [pid for pid in spared if not is_alive(pid)]
    assert dead == [], "vLLM's engine does not notice (vllm#55510)"
    assert (SHM / names[0]).exists()

    cleaned = stack.vllm_stack("clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert not any(is_alive(pid) for pid in spared)
    assert not any((SHM / name).exists() for name in names)
    assert not any(path.exists() for path in temporary)
    assert stack.vllm_stack("clean").stdout == "Nothing was left.\n"
