"""The pause after a failure: always kept, never in the way of an operator, and never the end of it."""

from __future__ import annotations

import itertools
import time

from tests.integration.conftest import BIN, Play, Scenario, Stack, StackFactory, gone
from tests.support.polling import throughout, until

DELAY = 2.0


def gaps(one: Stack) -> list[float]:
    times = [up for up, _ in one.starts()]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def waiting(one: Stack) -> bool:
    """Tell whether the wrapper's last word is that it waits."""
    return "starting it again in" in one.log("worker-0").strip().splitlines()[-1]


def sampled(one: Stack, seen: set[str]) -> set[str]:
    seen.add(one.state("worker-0"))
    return seen


def a_crash_loop_keeps_its_pace_and_never_becomes_fatal(stack: StackFactory) -> None:
    """Starts lie at least the delay apart, the states stay truthful, and a repair is picked up."""
    one = stack(restart_delay=DELAY, log_starts=True)
    one.set_fake(EXIT_AT=0.1, EXIT_CODE=1)
    assert one.render() == 0
    one.start()
    until(one.answers, 10, "supervisord answers")
    seen: set[str] = set()
    until(lambda: sampled(one, seen) and len(one.starts()) >= 4, 40, "four starts", every=0.1)
    assert min(gaps(one)) >= DELAY
    assert max(gaps(one)) < DELAY + 6
    assert seen <= {"STARTING", "RUNNING", "EXITED", "BACKOFF"}
    one.set_fake(EXIT_AT=-1)
    until(one.is_ready, 20, "the repaired worker serves")
    log = one.log("supervisord")
    assert "FATAL" not in log
    assert log.count("BACKOFF") <= 1, "the count of failed starts is reset by every delayed one"


def a_server_that_fails_in_no_time_does_not_spin(stack: StackFactory) -> None:
    """Exit code 0 within milliseconds, again and again: the delay holds."""
    one = stack(restart_delay=DELAY, log_starts=True)
    one.set_fake(EXIT_AT=0, EXIT_CODE=0)
    assert one.render() == 0
    one.start()
    until(lambda: len(one.starts()) >= 3, 30, "three starts")
    assert min(gaps(one)) >= DELAY
    assert one.failure()["returncode"] == 0


def stop_and_restart_during_the_delay_are_obeyed_at_once(stack: StackFactory) -> None:
    """A stop is over in a moment and ends the wait for good; a deliberate start does not wait."""
    one = stack(restart_delay=25, log_starts=True).up()
    one.kill(one.tree().server)
    until(lambda: waiting(one), 10, "the wrapper waits")
    begun = time.monotonic()
    one.rpc("stopProcess", "workers:worker-0")
    assert time.monotonic() - begun < 1.5
    assert one.state("worker-0") == "STOPPED"
    assert one.failure() == {}
    one.rpc("startProcess", "workers:worker-0", False)
    until(one.is_ready, 8, "a deliberate start does not wait")

    one.kill(one.tree().server)
    until(lambda: waiting(one), 10, "the wrapper waits again")
    tries = len(one.starts())
    # It stays until the worker is RUNNING, which takes as long as the delay: not waited for.
    one.ledger.start(
        [BIN / "supervisorctl", "-c", one.layout.supervisord_conf, "restart", "workers:worker-0"]
    )
    until(lambda: len(one.starts()) > tries, 5, "a restart in the delay starts at once")
    until(one.is_ready, 8, "and serves")


def a_restart_of_a_healthy_worker_does_not_wait(stack: StackFactory) -> None:
    """The old tree is drained and gone before the new one begins."""
    one = stack(restart_delay=25, log_starts=True).up()
    tree = one.tree()
    one.rpc("stopProcess", "workers:worker-0")
    assert gone(*tree.pids)()
    begun = time.monotonic()
    one.rpc("startProcess", "workers:worker-0", False)
    until(one.is_ready, 10, "it serves again")
    assert time.monotonic() - begun < 10
    assert one.failure() == {}
    assert len(one.starts()) == 2


def a_failure_before_a_cold_start_of_the_stack_is_not_waited_out_after_a_stop(
    stack: StackFactory,
) -> None:
    """down and up again is deliberate: nothing of the old failure holds up the new start."""
    one = stack(restart_delay=25, log_starts=True).up()
    one.kill(one.tree().server)
    until(lambda: waiting(one), 10, "the wrapper waits")
    assert one.vllm_stack("down").returncode == 0
    assert one.failure() == {}
    one.start()
    until(one.is_ready, 12, "the next start does not wait")


def a_vllm_command_that_was_removed_is_one_clear_line_and_a_delay(stack: StackFactory) -> None:
    """No traceback, no spin, and it goes on when the command is back."""
    one = stack(restart_delay=1, log_starts=True)
    assert one.render() == 0
    command = one.home / "noting-vllm"
    away = command.rename(one.home / "away")
    one.start()
    until(lambda: one.log("worker-0").count("cannot be started") >= 2, 15, "two tries")
    log = one.log("worker-0")
    assert "Traceback" not in log
    assert "noting-vllm" in next(line for line in log.splitlines() if "cannot be started" in line)
    assert one.failure()["returncode"] == 127
    before = one.log("worker-0").count("cannot be started")
    throughout(lambda: one.log("worker-0").count("cannot be started") <= before + 1, 1.0, "it does not spin")
    assert one.state("worker-0") != "FATAL"
    away.rename(command)
    until(one.is_ready, 15, "it serves when the command is back")


def a_killed_wrapper_is_a_failure_like_any_other(stack: StackFactory) -> None:
    """Its server dies with it and was not asked to: the next start keeps the delay."""
    one = stack(restart_delay=DELAY, log_starts=True).up()
    until(lambda: one.state("worker-0") == "RUNNING", 6, "supervisord would start it again at once")
    tree = one.tree()
    with open("/proc/uptime") as stream:
        killed = float(stream.read().split()[0])
    one.kill(tree.wrapper)
    until(lambda: len(one.starts()) == 2, 20, "it starts again")
    assert one.starts()[1][0] >= killed + DELAY - 0.02


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
