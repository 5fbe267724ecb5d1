"""Several models in one stack: each has its workers, which come up, fail and are drilled by themselves."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import CHAT, Stack, ask, chat, stacks_in
from tests.support.polling import until
from tests.support.witnesses import words

WRITER = {"model": "org/writer", "aliases": ["chat"], "workers": 2}
READER = {"model": "org/reader", "vllm-args": ["--served-model-name", "reader", "--enable-lora"]}


@pytest.fixture
def models(tmp_path: Path) -> Iterator[Stack]:
    """Two workers of one model and one of another, which starts when it may."""
    with stacks_in(tmp_path) as make:
        yield make(workers=3, restart_delay=1.0, models=(WRITER, READER), start_stagger="auto")


def served_by(one: Stack, model: str, among: tuple[int, ...] = (0, 1, 2)) -> list[int]:
    """Ask for a model; give which of these workers have seen a request."""
    before = {index: answered(one, index) for index in among}
    status, body = ask(one.door, "POST", CHAT, {**chat(), "model": model})
    assert status == 200, body
    return [index for index in among if answered(one, index) > before[index]]


def answered(one: Stack, worker: int) -> int:
    told = json.loads(ask(one.ports[worker], path="/fake/state")[1])
    return int(told["requests"].get(CHAT, 0))


def test_every_model_has_its_workers_from_the_file_to_the_status(models: Stack) -> None:
    """What one goes through does not touch the other."""
    models.set_fake(0, LOAD_SECONDS=2)
    models.set_fake(1, LOAD_SECONDS=2)
    models.up()
    (first, second) = sorted(moments(models, index) for index in (0, 1))
    assert second[0] >= first[1], "the second of a model starts when the first is ready"
    assert "starts first" not in models.log("worker-2"), "the other model waits for nobody"

    assert served_by(models, "org/writer") in ([0], [1])
    assert served_by(models, "chat") in ([0], [1])
    assert served_by(models, "reader") == [2]
    status, body = ask(models.door, "POST", CHAT, {**chat(), "model": "org/reader"})
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")
    listed = json.loads(ask(models.door, path="/v1/models")[1])
    assert [entry["id"] for entry in listed["data"]] == ["org/writer", "chat", "reader"]
    command = words(models.tree(1).server)
    assert "--served-model-name org/writer chat" in command
    assert "reader" not in command

    workers = told(models)
    assert [(worker["name"], worker["model"]) for worker in workers] == [
        ("worker-0", "org/writer"),
        ("worker-1", "org/writer"),
        ("worker-2", "reader"),
    ]
    shown = models.vllm_stack("status").stdout
    assert "reader" in shown

    models.kill(models.tree(2).server, signal.SIGKILL)
    until(lambda: models.workers_seen()["worker-2"] != "ready", 10, "its end is seen")
    assert served_by(models, "chat", among=(0, 1)) in ([0], [1])
    until(models.is_ready, 30, "it is back")
    assert served_by(models, "reader") == [2]

    # The drill's own requests go to the worker that it hurts.
    done = models.vllm_stack("drill", "--only", "restart", "--worker", "worker-2", "--yes", "--json")
    assert answered(models, 2) > 0, done.stderr
    assert json.loads(done.stdout)["drills"][0]["verdict"] == "passed", done.stdout


def moments(one: Stack, worker: int) -> tuple[str, str]:
    """Give when a worker was started, and when it was ready, as its log says (to the second)."""
    one.says(f"worker-{worker}", "vLLM is ready")
    lines = one.log(f"worker-{worker}").splitlines()
    started, ready = (
        next(line[:19] for line in lines if said in line) for said in ("started vLLM", "vLLM is ready")
    )
    return started, ready


def told(one: Stack) -> list[dict[str, Any]]:
    done = one.vllm_stack("status", "--json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout)["workers"])
