"""What two kills at once leave behind is swept at the next start; what is not ours is never touched."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import Play, Scenario, Stack, StackFactory, gone
from tests.support.polling import throughout, until
from tests.support.processes import ProcessLedger, is_alive
from vllm_stack.leftovers.processes import MARKER

TITLED = """
import sys, setproctitle, signal
setproctitle.setproctitle(sys.argv[1])
print(flush=True)
signal.pause()
"""
SQUAT = """
import signal, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print(flush=True)
signal.pause()
"""


def kill_supervisord_and_wrapper(one: Stack, wrapper: int) -> None:
    assert one.supervisord is not None
    one.ledger.remember()
    # The wrapper first, and supervisord before it can start another.
    for pid in (wrapper, one.supervisord.pid):
        os.kill(pid, signal.SIGKILL)
    until(gone(wrapper, one.supervisord.pid), 3, "both are gone")


@pytest.fixture
def orphaned(stack: StackFactory) -> tuple[Stack, tuple[int, ...]]:
    """A stack that lost supervisord and its wrapper at once, and the two processes that stay."""
    one = stack(restart_delay=1)
    one.set_fake(SETSID=1, ENGINE_IGNORES_TERM=1)
    one.up()
    tree = one.tree()
    kill_supervisord_and_wrapper(one, tree.wrapper)
    until(gone(tree.server), 2, "the server died with its wrapper")
    orphans = tree.engine, tree.tensor_parallel
    for pid in orphans:
        assert MARKER not in psutil.Process(pid).environ(), "the fake no longer hides its environment"
    throughout(lambda: all(is_alive(pid) for pid in orphans), 0.5, "the engine lives on as an orphan")
    one.set_fake(SETSID=0, ENGINE_IGNORES_TERM=0)
    return one, orphans


def test_the_next_start_sweeps_what_two_kills_left_behind(orphaned: tuple[Stack, tuple[int, ...]]) -> None:
    """Renamed, in a session of its own, re-parented, deaf: found and ended before vLLM starts."""
    one, orphans = orphaned
    one.start()
    until(one.is_ready, 30, "the next start serves")
    assert gone(*orphans)()
    log = one.log("worker-0")
    swept = log.index(f"killing process {orphans[0]}")
    assert log.index("started vLLM", swept) > swept
    assert "left behind by an earlier life" in log


def test_down_sweeps_what_two_kills_left_behind(orphaned: tuple[Stack, tuple[int, ...]]) -> None:
    """Also when no supervisord runs any more, and it says so."""
    one, orphans = orphaned
    downed = one.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")
    assert "supervisord is not running" in downed.stdout
    assert f"killing process {orphans[0]}" in downed.stdout
    assert gone(*orphans)()
    one.assert_all_gone(0)


def leftovers_of_a_worker_that_a_later_render_dropped_are_swept_too(stack: StackFactory) -> None:
    """Two workers, a hard death, a render with one: the other's engine must not keep its GPU."""
    one = stack(workers=2, restart_delay=1)
    one.set_fake(SETSID=1, ENGINE_IGNORES_TERM=1)
    one.up()
    tree, other = one.tree(1), one.tree(0)
    kill_supervisord_and_wrapper(one, tree.wrapper)
    one.set_fake(SETSID=0, ENGINE_IGNORES_TERM=0)
    until(gone(tree.server, *other.pids), 10, "all but the orphans of worker-1 is gone")
    assert one.render(workers="1") == 0
    assert one.vllm_stack("down").returncode == 0
    until(gone(tree.engine, tree.tensor_parallel), 1, "down ended the orphans of worker-1")


class Bystanders:
    """Processes of the same user that look like ours, and are not."""

    def __init__(self, ledger: ProcessLedger, home: Path) -> None:
        self._ledger, self._home = ledger, home
        self.pids: dict[str, int] = {}

    def add(self, what: str, argv: Sequence[str], cwd: Path | None = None) -> None:
        log = self._home / f"bystander-{len(self.pids)}"
        env = {name: value for name, value in os.environ.items() if name != MARKER}
        self.pids[what] = self._ledger.start(argv, cwd=cwd or self._home, log=log, env=env).pid
        until(log.read_text, 10, f"{what} is up")

    def dead(self) -> list[str]:
        return [what for what, pid in self.pids.items() if not is_alive(pid)]


@pytest.fixture
def bystanders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bystanders]:
    home = tmp_path_factory.mktemp("bystanders")
    with ProcessLedger(home) as ledger:
        yield Bystanders(ledger, home)


def test_a_sweep_never_touches_a_process_that_only_looks_like_ours(
    stack: StackFactory, bystanders: Bystanders
) -> None:
    """Another stack's engine, other people's engines, shells and editors that name our directory."""
    one = stack(restart_delay=1).up()
    out, name = one.layout.out, one.layout.stack_name
    neighbour = out.parent / "out-other"
    (neighbour / "run" / "worker-0").mkdir(parents=True)
    twin = out / "run" / "worker-00"
    twin.mkdir()
    for title in (
        "vllm-stack:out-0badcafe:worker-0::EngineCore",
        f"vllm-stack:{name}x:worker-0::EngineCore",
        f"vllm-stack:{name}:worker-01::EngineCore",
        f"x-vllm-stack:{name}:worker-0::EngineCore",
        "VLLM::EngineCore",
        "worker-0",
    ):
        bystanders.add(title, [sys.executable, "-c", TITLED, title])
    shell = "echo; while :; do sleep 1; done"
    bystanders.add("a shell that names the directory", ["sh", "-c", shell, str(out / "run" / "worker-0")])
    bystanders.add("a shell that names the title", ["sh", "-c", shell, one.layout.process_title("worker-0")])
    bystanders.add("a process of the neighbour", ["sh", "-c", shell], cwd=neighbour / "run" / "worker-0")
    bystanders.add("a process in worker-00", ["sh", "-c", shell], cwd=twin)
    bystanders.add("a process in out/", ["sh", "-c", shell], cwd=out.parent)
    tree = one.tree()
    kill_supervisord_and_wrapper(one, tree.wrapper)
    one.start()
    until(lambda: one.is_ready() and one.tree().server != tree.server, 30, "the next start serves")
    assert bystanders.dead() == []
    assert one.vllm_stack("down").returncode == 0
    assert bystanders.dead() == []


def one_worker_never_sweeps_its_sibling_or_another_stack(stack: StackFactory) -> None:
    """Two stacks of one user side by side; one worker of one of them is killed again and again."""
    one, two = stack(workers=2, restart_delay=1).up(), stack(restart_delay=1).up()
    sibling, stranger = one.tree(1), two.tree(0)
    for _ in range(2):
        tree = one.tree(0)
        one.kill(tree.wrapper)
        until(lambda: one.serves(0) and one.tree(0).server != tree.server, 20, "worker-0 is back")  # noqa: B023
    assert one.tree(1) == sibling
    assert one.vllm_stack("down").returncode == 0
    assert two.tree(0) == stranger
    assert two.is_ready()


def a_port_in_use_by_somebody_else_is_tried_again_until_it_is_free(stack: StackFactory) -> None:
    """One clear line in the log, the delay between the tries, and no harm to who holds the port."""
    one = stack(restart_delay=1, log_starts=True)
    assert one.render() == 0
    log = one.home / "squatter"
    with ProcessLedger(log) as ledger:
        squatter = ledger.start([sys.executable, "-c", SQUAT, str(one.ports[0])], log=log)
        until(log.read_text, 5, "the port is taken")
        one.start()
        until(lambda: len(one.starts()) >= 3, 40, "it keeps trying")
        one.says("worker-0", "Address already in use")
        assert squatter.poll() is None
        assert one.state("worker-0") != "FATAL"
        squatter.kill()
        squatter.wait(5)
    until(one.is_ready, 15, "it serves once the port is free")
    times = [up for up, _ in one.starts()]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
