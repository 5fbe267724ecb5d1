"""A stack without workers: a balancer before other servers, under real supervisord."""

from __future__ import annotations

from tests.integration.conftest import CHAT, Play, Scenario, StackFactory, ask, chat
from tests.support.polling import until


def a_pure_balancer_waits_serves_and_stops(stack: StackFactory) -> None:
    """`wait` ends when the upstream is ready, and says why it waits before."""
    back = stack(workers=1).up()
    assert back.vllm_stack("down").returncode == 0
    front = stack(workers=0, upstream=f"http://127.0.0.1:{back.door}")
    assert front.render() == 0
    front.start()
    until(front.answers, 15, "supervisord answers")
    impatient = front.vllm_stack("wait", "--timeout", "3")
    assert impatient.returncode == 1
    assert "upstream-0 is not listening" in impatient.stderr
    back.start()
    waited = front.vllm_stack("wait", "--timeout", "30")
    assert (waited.returncode, waited.stdout.splitlines()[-1][-12:]) == (0, ": upstream-0"), waited
    assert ask(front.door, "POST", CHAT, chat(tokens=2))[0] == 200
    status = front.supervisorctl("status").stdout
    assert [line.split()[:2] for line in status.splitlines()] == [["proxy", "RUNNING"]]
    downed = front.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")
    front.assert_all_gone(0)
    assert back.vllm_stack("down").returncode == 0


def workers_are_waited_for_and_upstreams_are_not(stack: StackFactory) -> None:
    """Another box that is down is no reason not to start."""
    one = stack(workers=1, upstream="http://127.0.0.1:9").up()
    waited = one.vllm_stack("wait", "--timeout", "20")
    assert (waited.returncode, waited.stdout.splitlines()[-1][-10:]) == (0, ": worker-0"), waited
    assert one.workers_seen()["upstream-0"] == "not listening"


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
