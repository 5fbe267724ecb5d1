"""What a drill does to processes, and that it makes good what the stack cannot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import psutil
import pytest

from tests.support.polling import until
from vllm_stack import cli
from vllm_stack.drill.conduct import WEDGE_SLACK, Conductor, _Drill
from vllm_stack.drill.faults import DRILLS, HangEngine, RestartWorker, Site, reason_to_skip
from vllm_stack.drill.interrupts import ending_once
from vllm_stack.drill.trees import left_over, record, record_tree
from vllm_stack.errors import StackError
from vllm_stack.layout import Layout
from vllm_stack.leftovers.processes import Identity
from vllm_stack.supervisor_rpc import Supervisor

CHILD = """
import setproctitle, signal, sys
setproctitle.setproctitle(sys.argv[1])
print(flush=True)
signal.pause()
"""
TREE = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


class ScriptedSupervisor:
    """supervisord with one program: it stops when it is asked for its state often enough."""

    def __init__(self, pid: int = 0, looks: int = 2) -> None:
        self.pid, self.looks = pid, looks
        self.calls: list[str] = []

    def call(self, method: str, *params: Any) -> Any:
        if method != "getProcessInfo":
            self.calls.append(method)
            return True
        if "stopProcess" in self.calls:
            self.looks -= 1
        return {"pid": self.pid, "state": 0 if self.looks <= 0 else 40}


def site(tmp_path: Path, supervisor: ScriptedSupervisor, wedge_timeout: float = 0) -> Site:
    fake = cast(Supervisor, supervisor)
    return Site(Layout.at(tmp_path / "out"), fake, "worker-0", 1, stop_seconds=5, wedge_timeout=wedge_timeout)


@pytest.fixture
def wrapper(tmp_path: Path) -> Iterator[psutil.Process]:
    """A process whose child is called as the engine of worker-0."""
    title = f"{Layout.at(tmp_path / 'out').process_title('worker-0')}::EngineCore"
    with subprocess.Popen([sys.executable, "-c", TREE, CHILD, title], stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.readline()
        process = psutil.Process(running.pid)
        children = process.children()
        yield process
        for one in (*children, process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def test_an_engine_that_was_stopped_runs_again_after_the_drill(
    tmp_path: Path, wrapper: psutil.Process
) -> None:
    (engine,) = wrapper.children()
    fault = HangEngine(site(tmp_path, ScriptedSupervisor(wrapper.pid), wedge_timeout=1))
    assert {recorded.pid for recorded in fault.aim()} == {wrapper.pid, engine.pid}
    assert fault.victim is not None
    assert fault.victim.pid == engine.pid
    fault.strike()
    until(lambda: engine.status() == psutil.STATUS_STOPPED, 5, "the engine is stopped")
    fault.undo()
    until(lambda: engine.status() != psutil.STATUS_STOPPED, 5, "the engine runs again")
    fault.undo()
    assert engine.is_running()


def test_an_engine_that_the_watch_has_ended_is_not_looked_for_again(
    tmp_path: Path, wrapper: psutil.Process
) -> None:
    (engine,) = wrapper.children()
    fault = HangEngine(site(tmp_path, ScriptedSupervisor(wrapper.pid), wedge_timeout=1))
    fault.aim()
    fault.strike()
    engine.kill()
    until(lambda: not engine.is_running(), 5, "the engine is gone")
    fault.undo()
    with pytest.raises(StackError, match=f"{engine.pid} had ended"):
        fault.strike()


def test_a_hang_is_drilled_only_where_a_watch_would_end_it() -> None:
    assert "wedge" in (reason_to_skip("hang", 0) or "")
    assert reason_to_skip("hang", 300) is None
    assert reason_to_skip("engine", 0) is None


def test_a_hang_that_the_watch_does_not_end_is_given_up_soon_after_its_time(
    tmp_path: Path, wrapper: psutil.Process
) -> None:
    """Long before the timeout of the drill; a worker that the watch has ended gets all of that."""

    def patience(name: str) -> _Drill:
        there = site(tmp_path, ScriptedSupervisor(), wedge_timeout=20)
        conductor = Conductor(there, ("worker-0",), *([cast(Any, None)] * 3), 4, 900.0, print)
        return _Drill(conductor, name, *([cast(Any, None)] * 3))

    hang, engine = patience("hang"), patience("engine")
    victim = record(wrapper)
    assert hang._patience_over(20 + WEDGE_SLACK - 1, victim) is None
    assert "did not end it" in (hang._patience_over(20 + WEDGE_SLACK + 1, victim) or "")
    assert engine._patience_over(20 + WEDGE_SLACK + 1, victim) is None
    wrapper.children()[0].kill()
    wrapper.wait(5)
    assert hang._patience_over(899, victim) is None
    assert "within 900 s" in (hang._patience_over(901, victim) or "")


def test_a_restart_starts_the_worker_once_it_has_stopped(tmp_path: Path, wrapper: psutil.Process) -> None:
    supervisor = ScriptedSupervisor(wrapper.pid)
    fault = RestartWorker(site(tmp_path, supervisor))
    fault.aim()
    fault.strike()
    fault.tend()
    assert supervisor.calls == ["stopProcess"]
    for _ in range(3):
        fault.tend()
    fault.undo()
    assert supervisor.calls == ["stopProcess", "startProcess"]


def test_a_restart_that_was_interrupted_does_not_leave_the_worker_stopped(
    tmp_path: Path, wrapper: psutil.Process
) -> None:
    supervisor = ScriptedSupervisor(wrapper.pid)
    fault = RestartWorker(site(tmp_path, supervisor))
    fault.undo()
    assert supervisor.calls == []
    fault.aim()
    fault.strike()
    fault.undo()
    assert supervisor.calls == ["stopProcess", "startProcess"]


def test_the_command_line_knows_every_drill_by_its_name() -> None:
    """It names them itself: loading the drills would make every other verb slower."""
    (only,) = (param for param in cli.group.commands["drill"].params if param.name == "only")
    assert isinstance(only.type, click.Choice)
    assert tuple(only.type.choices) == DRILLS


def test_a_supervisord_that_is_gone_is_said_in_a_sentence(tmp_path: Path) -> None:
    class Gone(ScriptedSupervisor):
        def call(self, method: str, *params: Any) -> Any:
            raise xmlrpc.client.Fault(10, "BAD_NAME") if method == "getProcessInfo" else OSError("gone")

    with pytest.raises(StackError, match="worker-0"):
        RestartWorker(site(tmp_path, Gone())).aim()


def test_what_still_lives_of_an_old_tree_is_left_over_unless_it_is_in_the_new_one(
    tmp_path: Path, wrapper: psutil.Process
) -> None:
    old = record_tree(wrapper.pid)
    assert len(old) == 2
    title = Layout.at(tmp_path / "out").process_title("worker-0")
    identity = Identity(title, tmp_path / "nowhere", tmp_path / "none")
    assert left_over(old, identity, wrapper.pid) == ()
    assert left_over(old, identity, 0) == old
    assert [left.pid for left in left_over((), identity, 0)] == [old[1].pid]
    wrapper.children()[0].kill()
    wrapper.wait(5)
    assert left_over(old, identity, 0) == ()


def test_the_first_ctrl_c_ends_the_drill_and_the_next_does_not_hurry_its_tidying_up() -> None:
    tidied: list[bool] = []

    def interrupted() -> None:
        with ending_once():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGINT)
                tidied.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tidied
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
