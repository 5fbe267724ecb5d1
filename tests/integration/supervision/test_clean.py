"""`vllm-stack clean`: what is left when everything is killed at once, and what must stay."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil

from tests.integration.conftest import Play, Scenario, Stack, StackFactory, gone
from tests.support.polling import throughout, until
from tests.support.processes import is_alive


def kill_all_but(one: Stack, spared: set[int]) -> None:
    """End every process of the stack in one moment: each is stopped first, so none sees another die."""
    doomed = [process for process in one.processes() if process.pid not in spared]
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            os.kill(process.pid, signum)
    until(gone(*(process.pid for process in doomed)), 10, "all that was to die is dead")


def wreck(one: Stack) -> list[psutil.Process]:
    """Run a stack and kill it so that only its engines are left, renamed and deaf; give them."""
    one.set_fake(SETSID=1, ENGINE_IGNORES_TERM=1)
    one.up()
    trees = [one.tree(worker) for worker in range(len(one.names))]
    engines = {pid for tree in trees for pid in (tree.engine, tree.tensor_parallel)}
    kill_all_but(one, engines)
    throughout(lambda: all(is_alive(pid) for pid in engines), 0.5, "the engines live on")
    return [psutil.Process(pid) for pid in sorted(engines)]


def files_of(one: Stack) -> dict[str, bytes]:
    """Give what must stay: rendered files, secrets, logs, failure records, the options in force."""
    out, run, state = one.layout.out, one.layout.run, one.layout.state
    kept = [path for path in out.rglob("*") if path.is_file() and not path.is_relative_to(run)]
    kept += [path for path in state.rglob("*") if path.is_file() and path.parent != state]
    return {str(path.relative_to(out)): path.read_bytes() for path in (*kept, *state.glob("*.failure.json"))}


def engines_and_files_of_a_stack_that_was_killed_at_once_go(stack: StackFactory) -> None:
    """Each is named once; what a person or the next start may want to read stays."""
    one = stack(workers=2, worker_transport="unix", restart_delay=1)
    one.up()
    one.kill(one.tree(1).server)
    until(lambda: one.failure(1), 15, "a failure is recorded")
    until(one.is_ready, 30, "it is back")
    assert one.vllm_stack("down").returncode == 0
    one.supervisord = None
    engines = wreck(one)
    record = one.layout.state / "worker-0.failure.json"
    record.write_text("{}")
    box = one.layout.box("worker-0")
    (box / "socket-of-an-engine").touch()
    (box / "cache").mkdir()
    (box / "cache" / "file").touch()
    (one.layout.state / "worker-1.stopping").touch()
    (one.layout.state / "worker-1.life.new").touch()
    stale = [
        one.layout.socket,
        one.layout.pidfile,
        *(one.layout.worker_socket(name) for name in one.names),
        *(one.layout.state / f"{name}.life.json" for name in ("proxy", *one.names)),
        one.layout.state / "worker-1.stopping",
        one.layout.state / "worker-1.life.new",
        box / "socket-of-an-engine",
        box / "cache",
    ]
    assert [path for path in stale if not path.exists()] == []
    kept = files_of(one)
    named = {"stack.json", "secrets/internal-key", "logs/worker-0.log", "run/state/worker-0.failure.json"}
    assert named < set(kept)

    cleaned = one.vllm_stack("clean")
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    for process in engines:
        assert cleaned.stdout.count(f"killing process {process.pid} ") == 1
    for path in stale:
        assert cleaned.stdout.count(f"removed {path} (") == 1
    assert [path for path in stale if path.exists()] == []
    assert files_of(one) == kept
    one.assert_all_gone(0)

    again = one.vllm_stack("clean")
    assert (again.returncode, again.stdout) == (0, "Nothing was left.\n")
    one.set_fake(SETSID=0, ENGINE_IGNORES_TERM=0)
    one.start()
    until(one.is_ready, 40, "what was cleaned starts again")
    assert one.vllm_stack("down").returncode == 0


def it_refuses_while_the_stack_runs_or_stands_still(stack: StackFactory) -> None:
    """Also when supervisord answers nothing: it is stopped, not dead."""
    one = stack().up()
    tree = one.tree()
    assert one.supervisord is not None
    for signum in (signal.SIGCONT, signal.SIGSTOP):
        one.kill(one.supervisord.pid, signum)
        refused = one.vllm_stack("clean")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.count("\n") == 1
        assert "stop it first: vllm-stack down" in refused.stderr
    one.kill(one.supervisord.pid, signal.SIGCONT)
    assert one.tree() == tree
    assert one.is_ready()
    assert one.vllm_stack("down").returncode == 0


def it_tells_programs_in_json_what_it_removed(stack: StackFactory) -> None:
    one = stack()
    nothing = one.vllm_stack("clean")
    assert nothing.returncode == 1
    assert "There is no stack in" in nothing.stderr
    assert one.render() == 0
    assert json.loads(one.vllm_stack("clean", "--json").stdout) == {"removed": []}
    one.layout.pidfile.write_text("1")
    removed = json.loads(one.vllm_stack("clean", "--json").stdout)["removed"]
    assert removed == [f"removed {one.layout.pidfile} (supervisord's process id)"]


def a_link_in_a_working_directory_goes_and_not_what_it_leads_to(stack: StackFactory) -> None:
    one = stack()
    assert one.render() == 0
    precious = one.home / "precious"
    precious.mkdir()
    (precious / "file").touch()
    links = [one.layout.box("worker-0") / "link", one.layout.box("proxy") / "nowhere"]
    links[0].symlink_to(precious)
    links[1].symlink_to(Path("/nonexistent"))
    cleaned = one.vllm_stack("clean")
    assert cleaned.stdout.count("removed ") == 2
    assert not any(link.is_symlink() for link in links)
    assert (precious / "file").exists()


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
