"""Before a start: whose turn it is, whether the GPUs are free, what lies about, and how long to wait."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil

from tests.integration.conftest import Play, Scenario, Stack, StackFactory, gone
from tests.support.nvml import StandIn, gpus
from tests.support.polling import throughout, until
from vllm_stack.leftovers.shared_memory import SHM
from vllm_stack.records.phase import Phase, read_phase

GIB = 1024**3


def phase(one: Stack, worker: int = 0) -> Phase | None:
    note = read_phase(one.layout.state / f"worker-{worker}.phase.json")
    return note.phase if note else None


def started(one: Stack, worker: int) -> bool:
    return "started vLLM" in one.log(f"worker-{worker}")


# ------------------------------------------------------------------ turns


def the_first_worker_starts_alone_and_the_others_follow_when_it_is_ready(stack: StackFactory) -> None:
    one = stack(workers=3, start_stagger="auto")
    one.set_fake(LOAD_SECONDS=2)
    assert one.render() == 0
    one.start()
    until(lambda: any(started(one, worker) for worker in range(3)), 40, "one starts")
    first = next(worker for worker in range(3) if started(one, worker))
    others = [worker for worker in range(3) if worker != first]

    def the_first_is_ready() -> bool:
        before = [started(one, worker) for worker in others]
        ready = phase(one, first) is Phase.READY
        assert ready or not any(before), "nobody else starts while the first one loads"
        return ready

    until(lambda: all(phase(one, worker) is Phase.QUEUED for worker in others), 5, "the others are in line")
    one.says(f"worker-{others[0]}", f"worker-{first} starts first")
    until(the_first_is_ready, 20, "the first one is ready")
    until(one.is_ready, 20, "all are ready")


def with_warm_caches_all_start_together(stack: StackFactory) -> None:
    """The second start of the same stack: nobody waits for anybody."""
    one = stack(workers=2, start_stagger="auto").up()
    supervisord = one.supervisord
    assert supervisord is not None
    one.kill(supervisord.pid, signal.SIGTERM)
    until(lambda: supervisord.poll() is not None, 15, "it stops")
    waits = sum(one.log(name).count("starts first") for name in one.names)
    one.set_fake(LOAD_SECONDS=600)
    one.start()
    until(lambda: all(phase(one, worker) is Phase.STARTING for worker in (0, 1)), 20, "both load")
    assert sum(one.log(name).count("starts first") for name in one.names) == waits


def a_first_worker_that_fails_does_not_hold_the_others_up(stack: StackFactory) -> None:
    """It waits out its delay, and another one has its turn meanwhile."""
    one = stack(workers=2, start_stagger="auto", restart_delay=60)
    one.set_fake(EXIT_AT=0.3)
    assert one.render() == 0
    one.start()
    until(lambda: started(one, 0) and started(one, 1), 30, "both have had their turn")
    until(lambda: phase(one, 0) is phase(one, 1) is Phase.WAITING, 15, "both wait out their delay")


def a_stop_while_in_line_is_obeyed_at_once(stack: StackFactory) -> None:
    one = stack(workers=2, start_stagger="auto")
    one.set_fake(LOAD_SECONDS=600)
    assert one.render() == 0
    one.start()
    until(lambda: {phase(one, 0), phase(one, 1)} == {Phase.STARTING, Phase.QUEUED}, 20, "one waits")
    last = 0 if phase(one, 0) is Phase.QUEUED else 1
    begun = time.monotonic()
    one.rpc("stopProcess", f"workers:worker-{last}")
    assert time.monotonic() - begun < 3
    assert not started(one, last)


# ------------------------------------------------------------------ the delay


def the_delay_grows_with_failures_in_a_row_where_a_longest_is_given(stack: StackFactory) -> None:
    one = stack(restart_delay=1, restart_delay_max="4", log_starts=True)
    one.set_fake(EXIT_AT=0.0)
    assert one.render() == 0
    one.start()
    until(lambda: len(one.starts()) >= 5, 60, "five starts")
    times = [up for up, _ in one.starts()]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert [gap >= least for gap, least in zip(gaps, (1, 2, 4, 4), strict=False)] == [True] * 4, gaps
    assert max(gaps) < 20
    assert one.failure()["in_row"] >= 4
    one.says("worker-0", "the 3rd failure in a row")
    one.rpc("stopProcess", "workers:worker-0")
    assert one.failure() == {}, "a deliberate start begins anew"


# ------------------------------------------------------------------ what lies about


def shared_memory(one: Stack) -> list[Path]:
    """Give the files in /dev/shm that the engine of worker-0 maps."""
    maps = Path(f"/proc/{one.tree().engine}/maps").read_text()
    return sorted({Path(line.split()[-1]) for line in maps.splitlines() if f" {SHM}/" in line})


def temporary_files(one: Stack) -> list[Path]:
    return list(one.layout.box("worker-0").glob("tmp/vllm_dist_*"))


def files_of_a_killed_tree_are_removed(stack: StackFactory) -> None:
    """The server alone, then its tracker with it, then everything at once and a start after it."""
    # The path of a worker's directory must be short, or sockets would not fit into it.
    with tempfile.TemporaryDirectory(prefix="stack-") as home:
        kill_in_turn(stack(Path(home) / "out", restart_delay=1))


def kill_in_turn(one: Stack) -> None:
    one.set_fake(LEAVE_FILES=1)
    one.up()
    record = one.layout.state / "worker-0.shm.json"

    tree, files = one.tree(), shared_memory(one)
    assert len(files) == 1
    (old,) = temporary_files(one)
    one.kill(tree.server)
    until(lambda: one.is_ready() and one.tree().server != tree.server, 25, "the worker is back")
    assert [path.exists() for path in (*files, old)] == [False, False]

    tree, files = one.tree(), shared_memory(one)
    until(lambda: files[0].name in record.read_text(), 15, "the wrapper has noted it")
    for process in psutil.Process(tree.wrapper).children(recursive=True):
        process.kill()
    until(lambda: one.is_ready() and one.tree().server != tree.server, 25, "the worker is back")
    assert not files[0].exists()

    files, old = shared_memory(one), temporary_files(one)[0]
    until(lambda: files[0].name in record.read_text(), 15, "the wrapper has noted it")
    everything = one.processes()
    one.ledger.remember()
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
    until(gone(*(process.pid for process in everything)), 5, "everything is dead")
    assert [path.exists() for path in (*files, old)] == [True, True], "such a kill leaves them"
    one.start()
    until(one.is_ready, 30, "the next start serves")
    assert [path.exists() for path in (*files, old)] == [False, False]
    one.says("worker-0", f"removed {files[0]}")


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)


# ------------------------------------------------------------------ the GPUs


def test_a_start_waits_until_the_memory_of_its_gpus_is_free_and_says_who_holds_it(
    stack: StackFactory, box: StandIn
) -> None:
    me = os.getpid()
    (gpu,) = gpus(1)
    box.show(replace(gpu, used=gpu.total - GIB, processes=((me, 40 * GIB),)))
    one = stack(device="cuda", env={**box.environment, "VLLM_STACK_ALLOW_BUSY": "1"})
    assert one.render() == 0
    one.start()
    until(lambda: phase(one) is Phase.BLOCKED, 20, "it waits for the memory")
    until(lambda: f"process {me}" in one.log("worker-0"), 5, "it says who holds it")
    throughout(lambda: not started(one, 0), 1.5, "nothing is started meanwhile")
    box.show(gpu)
    until(one.is_ready, 20, "it starts as soon as the memory is free")


def test_a_stop_while_the_memory_is_held_is_obeyed_at_once(stack: StackFactory, box: StandIn) -> None:
    (gpu,) = gpus(1)
    box.show(replace(gpu, used=gpu.total - GIB))
    one = stack(device="cuda", env={**box.environment, "VLLM_STACK_ALLOW_BUSY": "1"})
    assert one.render() == 0
    one.start()
    until(lambda: phase(one) is Phase.BLOCKED, 20, "it waits for the memory")
    begun = time.monotonic()
    one.rpc("stopProcess", "workers:worker-0")
    assert time.monotonic() - begun < 4
    assert not started(one, 0)


def test_a_stranger_holds_a_start_up_for_a_while_only(stack: StackFactory, box: StandIn) -> None:
    """Perhaps it is meant so; then vLLM is the judge."""
    (gpu,) = gpus(1)
    box.show(replace(gpu, used=gpu.total - GIB))
    one = stack(device="cuda", env={**box.environment, "VLLM_STACK_ALLOW_BUSY": "1"})
    assert one.render() == 0
    spec = one.layout.worker_json("worker-0")
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"gpu_patience": 2}))
    one.start()
    until(lambda: phase(one) is Phase.BLOCKED, 20, "it waits for the memory")
    until(lambda: "starting all the same" in one.log("worker-0"), 20, "its patience ends")
    until(one.is_ready, 20, "it serves")


def test_a_driver_that_does_not_tell_holds_nobody_up(stack: StackFactory, box: StandIn) -> None:
    box.show(*gpus(1))
    one = stack(device="cuda", env={**box.environment, "VLLM_STACK_ALLOW_BUSY": "1"})
    assert one.render() == 0
    box.show(*gpus(1), errors={"*": "lost"})
    one.start()
    until(one.is_ready, 30, "it starts all the same")
    one.says("worker-0", "the memory of the GPUs cannot be read")
