"""`vllm-stack status` on a running stack: a dead worker is never called ready."""

from __future__ import annotations

import json
import signal

from tests.integration.conftest import Play, Scenario, Stack, StackFactory
from tests.support.polling import until


def told(one: Stack) -> tuple[int, dict[str, dict[str, object]]]:
    done = one.vllm_stack("status", "--json")
    return done.returncode, {worker["name"]: worker for worker in json.loads(done.stdout)["workers"]}


def a_dead_worker_is_never_called_ready_and_its_end_is_told(stack: StackFactory) -> None:
    one = stack(workers=2, restart_delay=3).up()
    until(lambda: told(one)[0] == 0, 10, "all are ready")
    old = one.tree().server
    one.kill(old)
    code, workers = told(one)
    assert code == 1
    assert workers["worker-0"]["state"] != "ready"
    assert workers["worker-1"]["state"] == "ready"

    def waits() -> bool:
        worker = told(one)[1]["worker-0"]
        return worker["state"] == "waiting" and "killed from outside" in str(worker["last_failure"])

    until(waits, 10, "it waits, and the cause is told")
    shown = one.vllm_stack("status").stdout
    assert "s to go" in shown
    assert "was killed by SIGKILL" in shown
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


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
