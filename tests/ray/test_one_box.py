"""One box: what `render --target ray` writes serves, as the stack under supervisord would."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import requests

from tests.e2e.conftest import KEY, RealStack
from tests.ray.conftest import ALIAS, NAME, READY, Head, answer_of, shape
from tests.support.polling import until
from tests.support.processes import ProcessLedger, is_alive


def test_ray_lets_nobody_in_without_the_token(head: Head) -> None:
    answer = requests.get(f"http://127.0.0.1:{head.dashboard_port}/api/serve/applications/", timeout=20)
    assert answer.status_code == 401
    assert head.token.stat().st_mode & 0o777 == 0o600
    rendered = "".join(
        path.read_text("utf-8", "replace") for path in head.layout.out.glob("*.*") if path.is_file()
    )
    assert head.token.read_text().strip() not in rendered
    assert KEY not in rendered


def test_what_engines_say_is_in_the_log_of_the_program(head: Head) -> None:
    log = head.vllm_stack("logs", "ray", "--lines", "2000").stdout
    assert "EngineCore" in log
    assert "serving: all replicas run" in log


def test_answers_have_the_shape_of_the_stack_under_supervisord(
    head: Head, tmp_path: Path, tiny_model: Path
) -> None:
    with ProcessLedger(grace=60) as ledger:
        other = RealStack(tmp_path, ledger, workers=1)
        other.render(tiny_model, "--served-model-name", NAME, ALIAS)
        other.start()
        other.wait()
        for request in (
            {"path": "/v1/chat/completions", "messages": [{"role": "user", "content": "Hello"}]},
            {
                "path": "/v1/chat/completions",
                "messages": [{"role": "user", "content": "Hello"}],
                "stream": True,
            },
            {"path": "/v1/completions", "prompt": "Hello"},
            {"path": "/v1/models"},
        ):
            assert raw(head, dict(request)) == raw(other, dict(request)), request


def raw(stack: RealStack, body: dict[str, object]) -> object:
    """Give the shape of an answer; of a stream that of its events, each once."""
    url = f"http://127.0.0.1:{stack.port}{body.pop('path')}"
    headers = {"Authorization": f"Bearer {KEY}"}
    if not body:
        return shape(requests.get(url, headers=headers, timeout=60).json())
    body = {**body, "model": ALIAS, "max_tokens": 4, "temperature": 0}
    answer = requests.post(url, headers=headers, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    if not body.get("stream"):
        return shape(answer.json())
    return [sorted(shape(event)) for event in events(answer.text)]


def events(text: str) -> Iterator[object]:
    import json

    for line in text.splitlines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def test_an_engine_that_dies_is_started_again_by_ray_alone(head: Head, ledger: ProcessLedger) -> None:
    ledger.remember()
    engines = [process for process in ledger.alive() if "EngineCore" in " ".join(process.cmdline())]
    assert engines
    for engine in engines:
        engine.send_signal(signal.SIGKILL)

    def replaced() -> bool:
        alive = [process for process in ledger.alive() if "EngineCore" in " ".join(process.cmdline())]
        return bool(alive) and not {process.pid for process in alive} & {engine.pid for engine in engines}

    until(replaced, READY, "another engine runs", every=1)
    until(lambda: answer_of(head).usage.completion_tokens == 5, READY, "it answers again", every=1)
    assert not (head.layout.state / "ray.failure.json").exists(), "the head itself went on"


def test_a_head_whose_raylet_dies_comes_back_with_all_it_served(head: Head, ledger: ProcessLedger) -> None:
    """Last but one: it takes a start."""
    ledger.remember()
    mine = str(head.layout.ray_temp)
    (raylet,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or [])
        and words[0].endswith("/raylet")
        and any(mine in w for w in words)
    ]
    before = {
        process.pid: process.create_time()
        for process in ledger.alive()
        if "proxy" not in " ".join(process.cmdline())
    }
    raylet.send_signal(signal.SIGKILL)
    until(lambda: (head.layout.state / "ray.failure.json").exists(), 60, "the failure is recorded", every=0.2)
    until(lambda: not is_alive(raylet.pid), 10, "the raylet is gone")
    until(lambda: answer_of(head).usage.completion_tokens == 5, READY, "it answers again", every=1)
    engines = [pid for pid, created in before.items() if is_alive(pid, created)]
    names = [" ".join(psutil.Process(pid).cmdline())[:60] for pid in engines]
    assert not [name for name in names if name.startswith(("ray::", "VLLM", "vllm-stack:"))], names
    assert "Ray has ended" in (head.layout.state / "ray.failures.jsonl").read_text()
