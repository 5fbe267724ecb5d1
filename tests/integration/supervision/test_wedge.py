"""A server that hangs says 200 on /health; what is seen of it, what is kept, and that it comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.integration.conftest import CHAT, Play, Scenario, Stack, StackFactory, ask, chat, gone
from tests.support.polling import throughout, until
from vllm_stack.records.phase import Phase, read_phase

PATIENCE = 2.0


@contextlib.contextmanager
def in_background(one: Stack, count: int = 1, **script: object) -> Iterator[list[object]]:
    """Send requests that may take long or break; gives the list their outcomes go to."""
    outcomes: list[object] = []

    def send() -> None:
        try:
            outcomes.append(ask(one.door, "POST", CHAT, chat(**script), timeout=60))
        except Exception as error:
            outcomes.append(error)

    threads = [threading.Thread(target=send) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        for thread in threads:
            thread.join()


def in_flight(one: Stack) -> int:
    return int(json.loads(ask(one.ports[0], path="/load")[1])["server_load"])


def cases(one: Stack) -> list[Path]:
    return sorted(one.layout.evidence.glob("worker-0-*"))


def await_rescue(one: Stack, old: int) -> None:
    """See the hang found, its evidence kept, the tree killed, and the worker back."""
    until(lambda: one.failure().get("cause"), 20, "the hang is found")
    failure = one.failure()
    assert "its engine made no step" in failure["cause"]
    assert "--wedge-timeout 2" in failure["cause"]
    assert failure["phase"] == "ready"
    (case,) = cases(one)
    assert failure["evidence"] == str(case)
    assert "vllm:iteration_tokens_total_count" in (case / "metrics.txt").read_text()
    processes = (case / "processes.txt").read_text()
    assert "::EngineCore" in processes
    assert "stopped" in processes
    assert "thread" in processes
    assert list(case.glob("stack-*.txt"))
    assert failure["cause"] in (case / "reason.txt").read_text()
    until(lambda: one.is_ready() and one.serves() and one.tree().server != old, 25, "a new tree serves")


def an_engine_that_stops_under_load_is_ended_with_evidence_and_comes_back(stack: StackFactory) -> None:
    one = stack(restart_delay=1, wedge_timeout=str(PATIENCE)).up()
    tree = one.tree()
    with in_background(one, 4, tokens=200, delay=0.1):
        until(lambda: in_flight(one) == 4, 5, "the requests are in flight")
        one.kill(tree.engine, signal.SIGSTOP)
        assert ask(one.ports[0])[0] == 200, "health says nothing of it"
        until(gone(*tree.pids[1:]), 20, "the whole tree is ended, the stopped engine too")
        await_rescue(one, tree.server)


def an_engine_that_stops_while_idle_is_found_by_the_next_request(stack: StackFactory) -> None:
    """As long as nobody asks for anything, a server that hangs and one that rests look alike."""
    one = stack(restart_delay=1, wedge_timeout=str(PATIENCE)).up()
    tree = one.tree()
    one.kill(tree.engine, signal.SIGSTOP)
    throughout(lambda: psutil.pid_exists(tree.server), 2 * PATIENCE, "nobody ends an idle server")
    assert one.failure() == {}
    with in_background(one, tokens=4):
        until(gone(*tree.pids[1:]), 20, "the whole tree is ended")
        await_rescue(one, tree.server)


def a_server_that_does_not_answer_any_more_is_ended(stack: StackFactory) -> None:
    one = stack(restart_delay=1, wedge_timeout=str(PATIENCE)).up()
    tree = one.tree()
    # The proxy has seen it ready; the wrapper, which is to judge, may look a second later.
    one.says("worker-0", "vLLM is ready")
    one.kill(tree.server, signal.SIGSTOP)
    until(lambda: "its /health does not answer" in (one.failure().get("cause") or ""), 30, "it is found")
    until(lambda: one.is_ready() and one.tree().server != tree.server, 25, "a new tree serves")


def a_step_that_takes_long_is_no_hang_while_it_computes(stack: StackFactory) -> None:
    """A long prefill, or a compilation: no step, no token, but the engine computes."""
    one = stack(restart_delay=1, wedge_timeout=str(PATIENCE))
    one.set_fake(ENGINE_COMPUTES=1)
    one.up()
    tree = one.tree()
    with in_background(one, first_delay=2.5 * PATIENCE, tokens=2) as outcomes:
        until(lambda: in_flight(one) == 1, 5, "the request is in flight")
    assert outcomes[0][0] == 200  # type: ignore[index]
    assert one.tree() == tree
    assert cases(one) == []


def with_wedge_timeout_0_nobody_is_ended(stack: StackFactory) -> None:
    one = stack(restart_delay=1, wedge_timeout="0").up()
    tree = one.tree()
    with in_background(one, tokens=2):
        one.kill(tree.engine, signal.SIGSTOP)
        throughout(lambda: psutil.pid_exists(tree.server), 3 * PATIENCE, "it is left alone")
        os.kill(tree.engine, signal.SIGCONT)
    assert one.failure() == {}


def a_server_that_never_becomes_ready_is_started_again(stack: StackFactory) -> None:
    one = stack(restart_delay=1, start_timeout="3")
    one.set_fake(LOAD_SECONDS=600)
    assert one.render() == 0
    one.start()
    until(lambda: "--start-timeout 3" in (one.failure().get("cause") or ""), 30, "its time is over")
    assert one.failure()["phase"] == "starting"
    one.set_fake(LOAD_SECONDS=0.2)
    until(one.is_ready, 30, "the next life serves")


def a_stop_while_the_evidence_is_taken_is_a_stop(stack: StackFactory) -> None:
    """Nobody waits for py-spy, and the next start waits for nothing."""
    one = stack(restart_delay=1, wedge_timeout=str(PATIENCE)).up()
    tree = one.tree()
    note = one.layout.state / "worker-0.phase.json"
    with in_background(one, tokens=50, delay=0.1):
        until(lambda: in_flight(one) == 1, 5, "the request is in flight")
        one.kill(tree.engine, signal.SIGSTOP)

        def is_wedged() -> bool:
            seen = read_phase(note)
            return (seen is not None and seen.phase is Phase.WEDGED) or not psutil.pid_exists(tree.server)

        until(is_wedged, 20, "it is found", every=0.005)
        one.rpc("stopProcess", "workers:worker-0", False)
        until(lambda: one.state("worker-0") == "STOPPED", 20, "it stops")
    assert gone(*tree.pids)()


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
