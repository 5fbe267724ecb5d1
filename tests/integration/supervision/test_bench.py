"""`vllm-stack bench` on whole stacks: what it sends, what it reports, and when it does not begin."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import BIN, CHAT, Stack, StackFactory, ask
from tests.support.certificates import make_certificate
from tests.support.polling import until

SHORT = ("--concurrency", "1,3", "--requests", "6", "--max-tokens", "4")


def seen(one: Stack) -> list[dict[str, Any]]:
    """Give all chat requests that the workers have seen."""
    shown = [request for where in one.ports for request in json.loads(ask(where, path="/fake/requests")[1])]
    return [request for request in shown if request["target"] == CHAT]


def test_a_load_through_a_door_with_tls_and_a_key_and_to_workers_on_sockets(
    stack: StackFactory, tmp_path: Path
) -> None:
    """Both ways get all their requests, spread evenly, and no two prompts begin alike."""
    files = make_certificate(tmp_path)
    key = tmp_path / "key"
    key.write_text("sk-bench\n")
    key.chmod(0o600)
    one = stack(
        workers=2,
        worker_transport="unix",
        tls_cert=str(files.certificate),
        tls_key=str(files.key),
        api_key_file=str(key),
        host="127.0.0.1",
    )
    one.set_fake(SCRIPTS={"*": {"delay": 0.005}})
    one.up()
    refused = one.vllm_stack("bench", *SHORT)
    assert (refused.returncode, refused.stderr.splitlines()[-1]) == (
        2,
        "vllm-stack: The door asks for a key: --api-key-file FILE",
    )
    plot = tmp_path / "plot.png"
    done = one.vllm_stack(
        "bench", *SHORT, "--api-key-file", str(key), "--json", "--slo-ttft", "5000", "--plot", str(plot)
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert f"through the proxy: https://127.0.0.1:{one.door}/v1" in done.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    told = json.loads(done.stdout)
    levels = {(level["concurrency"], level["way"]): level for level in told["levels"]}
    assert list(levels) == [(1, "proxy"), (1, "direct"), (3, "proxy"), (3, "direct")]
    for level in levels.values():
        assert (level["requests"], level["errors"]) == (6, {})
        assert (level["output_tokens"], level["ttft"]["values"], level["itl"]["values"]) == (24, 6, 18)
        assert level["goodput"] == level["requests_per_second"] > 0
        assert level["itl"]["p50"] >= 0.004
    assert levels[3, "direct"]["servers"] == {"worker-0": 3, "worker-1": 3}
    assert [cost["concurrency"] for cost in told["proxy_adds"]] == [1, 3]
    requests = seen(one)
    assert len(requests) == 3 + 2 * 4 + 24, "to find out how to ask, to warm up, and the load"
    assert len({request["body_sha256"] for request in requests}) == len(requests)


def test_an_interrupted_load_reports_what_there_is(stack: StackFactory) -> None:
    one = stack()
    one.set_fake(SCRIPTS={"*": {"tokens": 2, "delay": 0.01}})
    one.up()
    argv = [BIN / "vllm-stack", "bench", "--out", one.layout.out, "--concurrency", "2", "--duration", "600"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=one.env) as running:
        try:
            until(lambda: len(seen(one)) > 20, 30, "the load has begun")
            running.send_signal(signal.SIGINT)
            shown, said = running.communicate(timeout=20)
        finally:
            running.kill()
    assert running.returncode == 130, said
    row = next(line.split() for line in shown.decode().splitlines() if "proxy" in line)
    assert row[:2] == ["2", "proxy"]
    assert int(row[2]) > 3
    assert b"Traceback" not in said


def test_one_worker_is_asked_alone_and_a_door_that_answers_nothing_whole_is_not_measured(
    stack: StackFactory,
) -> None:
    one = stack(workers=2).up()
    alone = one.vllm_stack("bench", *SHORT, "--worker", "worker-1", "--json")
    told = json.loads(alone.stdout)
    assert told["ways"] == {"direct": ["worker-1"]}
    assert told["proxy_adds"] == []
    for where in one.ports:
        ask(where, "PUT", "/fake/scripts", {CHAT: {"close_after_events": 3}})
    done = one.vllm_stack("bench", *SHORT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1].startswith(
        "vllm-stack: The door gives no streamed completion: error in the stream ("
    )


def test_a_balancer_is_measured_at_its_door_alone(stack: StackFactory) -> None:
    """And not at all while nothing is ready behind it."""
    back = stack()
    front = stack(workers=0, upstream=f"http://127.0.0.1:{back.door}")
    assert front.render() == 0
    front.start()
    until(lambda: front.workers_seen().get("upstream-0") == "not listening", 30, "the proxy runs")
    idle = front.vllm_stack("bench", *SHORT)
    assert (idle.returncode, "`vllm-stack wait`" in idle.stderr) == (1, True)
    back.up()
    until(lambda: front.workers_seen().get("upstream-0") == "ready", 30, "the upstream is ready")
    done = front.vllm_stack("bench", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "none of this stack's own serves the model" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if "proxy" in line]
    assert [row[:4] for row in rows] == [["1", "proxy", "6", "0"], ["3", "proxy", "6", "0"]]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--concurrency", "1,x"), 2, "'1,x' is no list of numbers from 1 to 4096"),
        (("--concurrency", "0"), 2, "'0' is no list of numbers"),
        (("--concurrency", "8", "--requests", "4"), 2, "--requests 4 cannot keep 8 clients busy"),
        (("--plot", "/nowhere/at/all.png"), 1, "there is no directory /nowhere/at"),
        ((), 1, "is not running: vllm-stack up"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    stack: StackFactory, words: tuple[str, ...], code: int, says: str
) -> None:
    one = stack()
    assert one.render() == 0
    done = one.vllm_stack("bench", *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr.splitlines()[-1]


def test_without_matplotlib_the_way_to_a_plot_is_said_before_any_load(
    stack: StackFactory, tmp_path: Path
) -> None:
    one = stack()
    assert one.render() == 0
    program = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'matplotlib' else find(name, *a)\n"
        "from vllm_stack.cli import main; main()"
    )
    argv = [sys.executable, "-c", program, "bench", "--out", str(one.layout.out), "--plot", "x.png"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path, env=os.environ
    )
    assert (done.returncode, done.stderr) == (
        1,
        "vllm-stack: --plot needs matplotlib: pip install 'vllm-stack[bench]', or leave the option out\n",
    )
