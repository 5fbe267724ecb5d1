"""SIGKILL of every process of a stack in turn: what goes with it, what stays, what comes back."""

from __future__ import annotations

import json
import os
import signal
import threading
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import CHAT, Play, Scenario, Stack, StackFactory, ask, chat, gone, run_at_once
from tests.support.polling import throughout, until
from tests.support.processes import is_alive
from vllm_stack.worker.failure import boot_clock

DELAY = 2.0


def is_back(one: Stack, worker: int, old: int) -> bool:
    return one.is_ready() and one.serves(worker) and one.tree(worker).server != old


def a_killed_api_server_takes_its_tree_along_and_comes_back_after_the_delay(stack: StackFactory) -> None:
    """The other worker is not touched, the status is STARTING meanwhile, and no request fails."""
    delay = 5.0  # supervisorctl takes its time on a loaded machine
    one = stack(workers=2, restart_delay=delay, log_starts=True).up()
    until(lambda: one.state("worker-0") == "RUNNING", 12, "the worker is booked as RUNNING")
    hurt, other = one.tree(0), one.tree(1)
    with one.traffic() as traffic:
        one.kill(hurt.server)
        until(gone(*hurt.pids), 5, "the whole tree is gone, the wrapper too")
        until(lambda: one.state("worker-0") == "STARTING", 3, "it waits in state STARTING")
        status = one.supervisorctl("status", "workers:worker-0")
        assert "STARTING" in status.stdout
        until(lambda: is_back(one, 0, hurt.server), 20, "the worker serves again")
        served = len(traffic.answers)
        until(lambda: len(traffic.answers) > served + 10, 10, "requests go on")
    failure = one.failure(0)
    assert failure["returncode"] == -signal.SIGKILL
    assert len(one.starts(0)) == 2
    assert one.starts(0)[1][0] >= failure["at"] + delay - 0.02
    assert one.tree(1) == other
    one.says("worker-0", "was killed by SIGKILL")
    assert len(one.starts(1)) == 1


DEAF = {"SETSID": 1, "ENGINE_IGNORES_TERM": 1}


def test_no_engine_outlives_its_api_server_or_its_wrapper(tmp_path: Path) -> None:
    """Within a few seconds the old processes are gone and a new tree serves, deaf engines or not."""

    def case(victim: str, settings: dict[str, int]) -> None:
        with Stack(tmp_path / f"{victim}-{len(settings)}" / "out") as one:
            one.set_fake(None, **settings)
            one.up()
            tree = one.tree()
            one.kill(getattr(tree, victim))
            until(gone(*tree.pids), 12, "the old tree is gone")
            until(lambda: is_back(one, 0, tree.server), 25, "a new tree serves")
            assert set(one.tree().pids).isdisjoint(tree.pids)
            engines = [p for p in one.processes() if "::EngineCore" in p.cmdline()[0]]
            assert [engine.pid for engine in engines] == [one.tree().engine]

    cases = {
        f"{victim}, {'deaf engine' if settings else 'engine in its group'}": partial(case, victim, settings)
        for victim in ("server", "wrapper")
        for settings in ({}, DEAF)
    }
    assert run_at_once(cases) == {}


def an_engine_killed_during_the_load_is_waited_out_too(stack: StackFactory) -> None:
    """A tree that dies before it was ever ready leaves nothing and starts again after the delay."""
    one = stack(restart_delay=1, log_starts=True)
    one.set_fake(LOAD_SECONDS=60, SETSID=1, ENGINE_IGNORES_TERM=1)
    assert one.render() == 0
    one.start()

    def engine() -> psutil.Process:
        return next(p for p in one.processes() if p.cmdline()[0].endswith("::EngineCore"))

    first = until(engine, 10, "the engine loads")
    server = one.starts()[0][1]
    one.set_fake(LOAD_SECONDS=0.2, SETSID=0, ENGINE_IGNORES_TERM=0)
    one.kill(server)
    until(gone(server, first.pid), 8, "both are gone")
    until(one.is_ready, 20, "the next life serves")
    assert one.starts()[1][0] >= one.failure()["at"] + 0.98


def an_engine_that_dies_ends_the_worker_although_its_server_exits_with_0(stack: StackFactory) -> None:
    """vllm#48966: exit code 0 that nobody asked for is a failure like any other."""
    one = stack(restart_delay=DELAY, log_starts=True)
    one.set_fake(ENGINE_DEATH_SECONDS=0.2)
    one.up()
    tree = one.tree()
    one.kill(tree.engine)
    until(gone(*tree.pids), 6, "the whole tree is gone")
    failure = until(one.failure, 3, "the failure is recorded")
    assert failure["returncode"] == 0
    one.says("worker-0", "ended with exit code 0")
    until(lambda: is_back(one, 0, tree.server), 20, "a new tree serves")
    assert one.starts()[1][0] >= failure["at"] + DELAY - 0.02
    one.says("supervisord", "exit status 70")


def a_tensor_parallel_worker_that_dies_ends_the_worker(stack: StackFactory) -> None:
    one = stack(restart_delay=1)
    one.set_fake(ENGINE_DEATH_SECONDS=0.2)
    one.up()
    tree = one.tree()
    one.kill(tree.tensor_parallel)
    until(gone(*tree.pids), 6, "the whole tree is gone")
    until(lambda: is_back(one, 0, tree.server), 20, "a new tree serves")


def a_killed_gunicorn_master_takes_its_workers_along_and_comes_back(stack: StackFactory) -> None:
    """No listener outlives it, the port is free for the next, and no vLLM notices."""
    one = stack().up()
    tree, master = one.tree(), one.pid("proxy")
    children = [child.pid for child in psutil.Process(master).children()]
    assert children
    one.kill(master)
    until(gone(master, *children), 5, "master and workers are gone")
    until(lambda: one.is_ready() and one.pid("proxy") != master, 10, "a new proxy serves")
    assert ask(one.door, "POST", CHAT, chat())[0] == 200
    assert one.tree() == tree
    assert one.failure() == {}


def a_killed_gunicorn_worker_is_replaced_and_its_counts_are_given_back(stack: StackFactory) -> None:
    """What it had in flight must not weigh on the workers for ever."""
    one = stack().up()
    tree, master = one.tree(), one.pid("proxy")
    (child,) = psutil.Process(master).children()
    with pytest.raises((OSError, AssertionError)):  # noqa: PT012 - the answer is cut with the process
        threading.Timer(0.4, os.kill, (child.pid, signal.SIGKILL)).start()
        status, _ = ask(one.door, "POST", CHAT, chat(hang=True))
        assert status == 200
    until(gone(child.pid), 2, "the old process is gone")
    until(one.is_ready, 10, "a new process serves")
    assert one.pid("proxy") == master
    loads = json.loads(ask(one.admin, path="/workers")[1])["workers"]
    assert [worker["in_flight"] for worker in loads] == [0]
    until(lambda: json.loads(ask(one.ports[0], path="/load")[1])["server_load"] == 0, 5, "vLLM aborted it")
    assert one.tree() == tree


def test_everything_goes_by_itself_when_supervisord_is_killed(tmp_path: Path) -> None:
    """And the next start finds no port taken."""

    def case(name: str, settings: dict[str, float]) -> None:
        waits = "EXIT_AT" in settings
        with Stack(tmp_path / name.replace(" ", "-") / "out", restart_delay=20 if waits else 1) as one:
            one.set_fake(None, **settings)
            assert one.render() == 0
            one.start()
            if waits:
                until(lambda: "starting it again in" in one.log("worker-0"), 20, "the wrapper waits")
            elif "LOAD_SECONDS" in settings:
                until(lambda: any("EngineCore" in p.cmdline()[0] for p in one.processes()), 20, "it loads")
            else:
                until(one.is_ready, 25, "the worker is ready")
            assert one.supervisord is not None
            one.kill(one.supervisord.pid)
            one.assert_all_gone(10)
            one.set_fake(LOAD_SECONDS=0.2, EXIT_AT=-1, SETSID=0, ENGINE_IGNORES_TERM=0)
            before = one.log("worker-0")
            one.start()
            until(one.is_ready, 30, "the next start serves")
            assert "left behind" not in one.log("worker-0").removeprefix(before)

    situations: dict[str, dict[str, float]] = {
        "serving": {},
        "serving with a deaf engine": dict(DEAF),
        "loading": {"LOAD_SECONDS": 60},
        "waiting out a failure": {"EXIT_AT": 0.0},
    }
    assert run_at_once({name: partial(case, name, told) for name, told in situations.items()}) == {}


def two_workers_killed_at_once_come_back_both(stack: StackFactory) -> None:
    """Between, a request waits for the one that is back first."""
    one = stack(workers=2, restart_delay=1, queue_timeout="30").up()
    trees = one.tree(0), one.tree(1)
    for tree in trees:
        one.kill(tree.server)
    until(lambda: ask(one.door)[0] == 503, 5, "nobody is ready")
    status, body = ask(one.door, "POST", CHAT, chat(), timeout=40)
    assert status == 200, body
    until(gone(*trees[0].pids, *trees[1].pids), 6, "both trees are gone")
    until(lambda: all(is_back(one, n, trees[n].server) for n in (0, 1)), 20, "both serve again")


def a_server_that_is_stopped_by_somebody_else_with_term_comes_back(stack: StackFactory) -> None:
    """TERM past supervisord, to the server alone: it ends with 0, and was not asked to by us."""
    one = stack(restart_delay=1).up()
    tree = one.tree()
    began = boot_clock()
    one.kill(tree.server, signal.SIGTERM)
    until(gone(*tree.pids), 6, "the tree is gone")
    assert one.failure()["returncode"] == 0
    assert one.failure()["at"] >= began
    until(lambda: is_back(one, 0, tree.server), 20, "it serves again")
    throughout(lambda: is_alive(one.pid("worker-0")), 0.2, "and stays")


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
