"""Ctrl-C and TERM at every moment of the first seconds: an end within bounds, and nothing left.

supervisord 4.3 polls for a second before its first spawn; a signal that comes in that second is
handled when everything was just forked, and its TERM is lost in the children's exec (facts,
section 0.1). So the offsets are dense there. Several stacks run at once: it is mostly waiting.
"""

from __future__ import annotations

import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.integration.conftest import Stack, StackFactory, run_at_once
from tests.support.polling import until

BOUND = 8.0  # seconds from the signal to the end of supervisord

SPREAD = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0]
DENSE = [0.9 + 0.025 * step for step in range(17)]


def interrupt(home: Path, signum: int, offset: float, after_its_word: bool) -> None:
    """Start a stack, signal supervisord `offset` seconds later, and see everything end.

    `after_its_word` counts the offset from supervisord's own word that it started: then the
    lost-signal window is where it is, however slow the machine.
    """
    with Stack(home / "out", workers=1) as one:
        assert one.render() == 0
        one.start()
        begun = time.monotonic()
        if after_its_word:
            until(lambda: "supervisord started" in one.log("supervisord"), 20, "it started", every=0.005)
            begun = time.monotonic()
        time.sleep(max(0.0, begun + offset - time.monotonic()))  # the offset is the subject
        assert one.supervisord is not None
        one.kill(one.supervisord.pid, signum)
        supervisord = one.supervisord
        until(lambda: supervisord.poll() is not None, BOUND, f"it ended; {one.log('supervisord')}")
        one.assert_all_gone(BOUND if signum == signal.SIGKILL else 0.5)
        assert "SIGKILL" not in one.log("supervisord")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("signum", "offsets"),
    [
        pytest.param(
            signal.SIGINT, [(at, False) for at in SPREAD] + [(at, True) for at in DENSE], id="Ctrl-C"
        ),
        pytest.param(signal.SIGTERM, [(0.5, False), (1.0, True), (1.05, True), (1.2, True)], id="TERM"),
        pytest.param(
            signal.SIGKILL, [(at, True) for at in (1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.8)], id="kill -9"
        ),
    ],
)
def test_a_signal_at_any_moment_of_the_start_ends_everything(
    tmp_path: Path, signum: int, offsets: list[tuple[float, bool]]
) -> None:
    """supervisord ends within bounds, kills nobody, and no process is left."""

    cases = {
        f"{at:.3f} s{' after its word' if word else ''}": partial(
            interrupt, tmp_path / f"{at:.3f}{'w' if word else ''}", signum, at, word
        )
        for at, word in offsets
    }
    assert run_at_once(cases) == {}


def test_a_stop_during_the_model_load_ends_everything_also_when_it_comes_twice(tmp_path: Path) -> None:
    """The second one changes nothing: supervisord ignores it, and nobody is killed."""

    def case(signum: signal.Signals) -> None:
        with Stack(tmp_path / signum.name / "out", workers=2) as one:
            one.set_fake(LOAD_SECONDS=60)
            assert one.render() == 0
            one.start()

            def engines() -> int:
                return sum("EngineCore" in process.cmdline()[0] for process in one.processes())

            until(lambda: engines() == 2, 20, "two engines load")
            supervisord = one.supervisord
            assert supervisord is not None
            one.kill(supervisord.pid, signum)
            until(lambda: "waiting for" in one.log("supervisord"), 5, "supervisord stops")
            one.kill(supervisord.pid, signum)
            until(lambda: supervisord.poll() is not None, BOUND, "it ended")
            assert supervisord.returncode == 0
            one.assert_all_gone(0.5)
            assert "SIGKILL" not in one.log("supervisord")

    cases = {signum.name: partial(case, signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    assert run_at_once(cases) == {}


def test_a_ctrl_c_while_a_failed_worker_waits_ends_at_once(stack: StackFactory) -> None:
    one = stack(workers=2, restart_delay=20)
    one.set_fake(EXIT_AT=0.0)
    assert one.render() == 0
    one.start()
    for name in one.names:
        until(lambda name=name: "starting it again" in one.log(name), 15, f"{name} waits")  # type: ignore[misc]
    assert one.supervisord is not None
    one.kill(one.supervisord.pid, signal.SIGINT)
    assert one.supervisord.wait(5) == 0
    one.assert_all_gone(0.5)
    assert "SIGKILL" not in one.log("supervisord")


def test_hup_restarts_the_stack_with_what_is_rendered_now(stack: StackFactory) -> None:
    """supervisord's HUP stops everything and reads its configuration anew."""
    one = stack(restart_delay=1).up()
    tree = one.tree()
    assert one.render(policy="random") == 0
    assert one.supervisord is not None
    one.kill(one.supervisord.pid, signal.SIGHUP)
    until(lambda: one.is_ready() and one.tree().server != tree.server, 30, "it serves again")
    assert one.failure() == {}
    assert one.supervisord.poll() is None
