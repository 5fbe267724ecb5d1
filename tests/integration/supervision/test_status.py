"""`vllm-stack status` on a running stack: a dead worker is never called ready."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import Any

from tests.integration.conftest import BIN, CHAT, Play, Scenario, Stack, StackFactory, chat
from tests.support.nvml import GIB, Gpu, StandIn
from tests.support.polling import until
from tests.support.terminal import CTRL_C, Terminal


def picture(one: Stack, *words: str) -> dict[str, Any]:
    done = one.vllm_stack("status", "--json", *words)
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["exit_code"] == done.returncode
    return found


def told(one: Stack) -> tuple[int, dict[str, dict[str, Any]]]:
    found = picture(one)
    return found["exit_code"], {worker["name"]: worker for worker in found["workers"]}


def a_dead_worker_is_never_called_ready_and_its_end_is_told(stack: StackFactory) -> None:
    one = stack(workers=2, restart_delay=60).up()
    until(lambda: told(one)[0] == 0, 10, "all are ready")
    old = one.tree().server
    one.kill(old)
    assert told(one)[1]["worker-0"]["state"] != "ready"
    until(lambda: told(one)[1]["worker-1"]["state"] == "ready" and told(one)[0] == 1, 20, "the other one is")

    def waits() -> bool:
        worker = told(one)[1]["worker-0"]
        return worker["state"] == "waiting" and "killed from outside" in str(worker["last_failure"])

    until(waits, 10, "it waits, and the cause is told")
    shown = one.vllm_stack("status").stdout
    assert "s left" in shown
    assert "starts again in" in shown
    assert "was killed by SIGKILL" in shown
    one.rpc("stopProcess", "workers:worker-0")
    one.rpc("startProcess", "workers:worker-0")  # a start that was asked for waits for nothing
    until(lambda: told(one)[0] == 0, 30, "all are ready again")
    assert one.tree().server != old


def a_frozen_server_is_not_called_ready(stack: StackFactory) -> None:
    one = stack().up()
    until(lambda: told(one)[0] == 0, 10, "it is ready")
    tree = one.tree()
    one.kill(tree.server, signal.SIGSTOP)
    code, workers = told(one)
    one.kill(tree.server, signal.SIGCONT)
    assert (code, workers["worker-0"]["state"]) == (3, "not answering")


def a_stack_that_does_not_run_is_said_to_be_so(stack: StackFactory) -> None:
    one = stack()
    assert one.render() == 0
    done = one.vllm_stack("status")
    assert done.returncode == 1
    assert "supervisord is not running" in done.stderr
    one.start()
    until(one.is_ready, 30, "it serves")
    one.rpc("stopProcess", "workers:worker-0")
    code, workers = told(one)
    assert (code, workers["worker-0"]["state"]) == (3, "stopped")


def what_every_part_does_is_told_in_figures(stack: StackFactory) -> None:
    one = stack(workers=2, policy="round-robin").up()

    def flows() -> bool:
        found = picture(one)
        rates = [worker["tokens_out_per_second"] or 0 for worker in found["workers"]]
        return all(rates) and found["proxy"]["requests_per_second"] > 0

    with one.traffic():
        until(flows, 30, "tokens come out of both, and requests end")
    found = picture(one, "--interval", "0")
    proxy, (worker, _) = found["proxy"], found["workers"]
    assert (found["exit_code"], found["summary"]) == (0, "Both workers are ready.")
    assert (proxy["state"], proxy["waiting"], proxy["in_flight"]) == ("running", 0, 0)
    assert 0 < proxy["first_byte_p50"] <= proxy["first_byte_p99"]
    assert proxy["requests_per_second"] is None, "there was one look"
    assert (worker["prefix_hit_rate"], worker["kv_cache"], worker["waiting"]) == (0.75, 0.0, 0)
    assert (worker["starts"], worker["failures"]) == (1, 0)
    # Without the proxy everybody else still tells.
    one.rpc("stopProcess", "proxy")
    said = "Nothing serves, because the proxy is stopped: both workers are ready."
    until(lambda: picture(one)["summary"] == said, 20, "the proxy is stopped, and the workers are well")
    found = picture(one)
    assert (found["exit_code"], found["proxy"]["in_flight"]) == (3, None)
    assert all(worker["tokens_out_per_second"] is not None for worker in found["workers"])
    assert "its admin door tells nothing" in one.vllm_stack("status").stdout


def what_is_ordered_out_is_draining_until_nothing_is_in_flight(stack: StackFactory) -> None:
    one = stack(workers=2, policy="least-loaded").up()
    streams = [open_stream(one) for _ in range(2)]
    until(lambda: all(worker["in_flight"] for worker in told(one)[1].values()), 10, "both are at work")
    verb = begin(one, "drain", "worker-0")
    until(lambda: told(one)[1]["worker-0"]["state"] == "draining", 10, "it drains")
    code, workers = told(one)
    assert code == 1
    assert workers["worker-0"]["ordered_out"]["reason"] == "by hand"
    for stream in streams:
        stream.kill()
    assert verb.wait(20) == 0
    until(lambda: told(one)[1]["worker-0"]["state"] == "drained", 10, "it is drained")
    found = picture(one)
    assert found["summary"] == "1 of 2 workers is ready (drained: worker-0)."


def begin(one: Stack, *words: str) -> subprocess.Popen[bytes]:
    verb, *rest = words
    return one.ledger.start(
        [BIN / "vllm-stack", verb, "--out", one.layout.out, *rest],
        env=one.env,
        cwd=one.home,
        log=one.home / verb,
    )


def open_stream(one: Stack) -> subprocess.Popen[bytes]:
    """Have another process ask for a stream of a minute; it must be killed."""
    body = json.dumps({**chat(tokens=600, delay=0.1), "stream": True})
    url = f"http://127.0.0.1:{one.door}{CHAT}"
    program = "import sys, requests; requests.post(sys.argv[1], data=sys.argv[2], timeout=90)"
    return one.ledger.start(
        [BIN / "python", "-c", program, url, body], env=one.env, cwd=one.home, log=one.home / "client"
    )


def a_stack_is_told_of_while_it_shuts_down_and_while_supervisord_hangs(stack: StackFactory) -> None:
    one = stack(workers=2).up()
    assert one.supervisord is not None
    one.kill(one.supervisord.pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert picture(one)["supervisord"] == "not answering"
    assert time.monotonic() - begun < 20, "it waits for supervisord two seconds, not for ever"
    until(lambda: picture(one)["exit_code"] == 0, 20, "the proxy and the workers tell that all is well")
    one.kill(one.supervisord.pid, signal.SIGCONT)
    os.kill(one.supervisord.pid, signal.SIGTERM)
    seen: set[str] = set()

    def ended() -> bool:
        done = one.vllm_stack("status", "--json")
        if done.returncode == 1 and "supervisord is not running" in done.stderr:
            return True
        found = json.loads(done.stdout)
        seen.update(worker["state"] for worker in found["workers"] if found["supervisord"] == "stopping")
        assert (done.returncode, done.stderr) == (3, "") or found["supervisord"] == "running"
        return False

    until(ended, 40, "it has ended")
    assert "ready" not in seen


def a_live_screen_shows_the_stack_go_down_and_come_back(stack: StackFactory) -> None:
    one = stack()
    assert one.render() == 0
    plain = one.vllm_stack("top")
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    assert "`vllm-stack status` prints the same once" in plain.stderr
    env = {**one.env, "TERM": "xterm", "COLUMNS": "160", "LINES": "40"}
    words = [BIN / "vllm-stack", "top", "--out", one.layout.out, "--interval", "0.2"]
    screen = Terminal(one.ledger, words, env, one.home)
    screen.until_shown("Waiting for it to come back", 30)
    one.start()
    screen.until_shown("The worker is ready.", 40)
    screen.until_shown("tok/s out lately", 20)
    one.kill(one.tree().server)
    screen.until_shown("was killed by SIGKILL", 20)
    screen.type(CTRL_C)
    assert screen.wait(20) == 130
    assert "Traceback" not in screen.shown


def test_gpus_are_told_with_their_memory_and_how_busy_they_are(stack: StackFactory, box: StandIn) -> None:
    box.show(Gpu("GPU-a"))
    one = stack(device="cuda", env=box.environment)
    assert one.render() == 0
    box.show(Gpu("GPU-a", used=70 * GIB, busy=98))
    one.start()
    until(lambda: told(one)[1]["worker-0"]["state"] == "blocked", 40, "its memory is held by others")

    def shown() -> str:
        text = one.vllm_stack("status", "--interval", "0").stdout
        return text if "70.0/79.5 GiB" in text else ""

    text = until(shown, 40, "the driver tells what is in use")
    assert "98%" in text
    assert "(NVIDIA H100 80GB HBM3) has 9.5 of 79.5 GiB free" in text


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
