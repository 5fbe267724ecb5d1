"""Judging a server by its progress: what is a hang, and what only looks like one."""

from __future__ import annotations

import pytest

from vllm_stack.worker.liveness import BUSY_PATIENCE, Limits, Liveness, Sight

WEDGE = 120.0
EVERY = 5.0


class Watched:
    """A server that is looked at every five seconds."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._liveness = Liveness(limits or Limits(start=1800.0, wedge=WEDGE), started=0.0)
        self.at = 0.0
        self.verdict: str | None = None
        self.cpu = 0.0

    def see(
        self,
        seconds: float,
        *,
        trouble: str | None = None,
        in_flight: int = 0,
        steps: float | None = 0.0,
        cores: float = 0.0,
    ) -> Watched:
        """Let it go on like this for some time."""
        until = self.at + seconds
        while self.at < until and self.verdict is None:
            self.at += EVERY
            self.cpu += cores * EVERY
            self.verdict = self._liveness.take(Sight(self.at, trouble, in_flight, steps, self.cpu))
        return self

    def ready(self) -> Watched:
        return self.see(30, trouble="refuses connections").see(5)


def test_an_engine_that_makes_no_step_with_requests_in_flight_is_wedged_after_its_patience() -> None:
    server = Watched().ready().see(WEDGE, in_flight=7, steps=40)
    assert server.verdict is None
    server.see(3 * EVERY, in_flight=7, steps=40)
    assert server.verdict is not None
    assert "made no step in 12" in server.verdict
    assert "--wedge-timeout 120" in server.verdict


@pytest.mark.parametrize("steps", [0.0, 12.0])
def test_an_engine_that_hangs_in_its_first_step_is_found_too(steps: float) -> None:
    assert Watched().ready().see(2 * WEDGE, in_flight=1, steps=steps).verdict is not None


def test_an_idle_server_is_never_wedged() -> None:
    assert Watched().ready().see(100 * WEDGE).verdict is None


def test_a_server_that_makes_steps_is_never_wedged() -> None:
    server = Watched().ready()
    for step in range(60):
        server.see(WEDGE - 2 * EVERY, in_flight=3, steps=float(step))
    assert server.verdict is None


def test_a_long_prefill_is_given_more_time_because_it_computes() -> None:
    server = Watched().ready().see((BUSY_PATIENCE - 1) * WEDGE, in_flight=1, cores=1.0)
    assert server.verdict is None
    assert server.see(5, in_flight=1, steps=1.0).verdict is None


def test_a_collective_that_spins_for_ever_is_found_in_the_end() -> None:
    server = Watched().ready().see((BUSY_PATIENCE + 1) * WEDGE, in_flight=1, cores=2.0)
    assert server.verdict is not None
    assert "although it computes" in server.verdict
    assert server.at == pytest.approx(35 + BUSY_PATIENCE * WEDGE, abs=3 * EVERY)


def test_an_engine_that_stops_in_the_middle_of_a_long_step_gets_its_patience_from_there() -> None:
    server = Watched().ready().see(2 * WEDGE, in_flight=1, cores=1.0)
    begun = server.at
    server.see(2 * WEDGE, in_flight=1)
    assert server.verdict is not None
    assert server.at - begun == pytest.approx(WEDGE, abs=2 * EVERY)


def test_clients_that_give_up_before_we_do_are_no_sign_of_life() -> None:
    """Each waits for a minute and leaves; the next one comes a little later."""
    server = Watched().ready()
    for _ in range(4):
        server.see(60, in_flight=1, steps=9).see(20, steps=9)
    assert server.verdict is not None


def test_a_few_requests_that_never_reach_the_engine_add_up_to_nothing() -> None:
    """Refused ones, say: now and then one is in flight for a moment, and no step follows."""
    server = Watched().ready()
    for _ in range(200):
        server.see(10, in_flight=1, steps=9).see(WEDGE + 10, steps=9)
    assert server.verdict is None


def test_steps_that_were_made_between_two_looks_count() -> None:
    """Short requests: seldom seen in flight, but the engine is further each time."""
    server = Watched().ready()
    for step in range(100):
        server.see(10, in_flight=1, steps=float(step)).see(10)
    assert server.verdict is None


def test_a_server_whose_metrics_do_not_tell_is_not_judged_by_them() -> None:
    assert Watched().ready().see(50 * WEDGE, in_flight=3, steps=None).verdict is None


def test_a_server_that_was_ready_and_stays_ill_is_ended() -> None:
    server = Watched().ready().see(WEDGE, trouble="answers 503")
    assert server.verdict is not None
    assert "its /health answers 503 for 120 s, after it had been ready" in server.verdict


def test_a_server_that_recovers_in_time_is_left_alone() -> None:
    server = Watched().ready()
    for _ in range(20):
        server.see(WEDGE - EVERY, trouble="does not answer").see(5)
    assert server.verdict is None


def test_a_server_that_is_not_ready_in_time_is_ended() -> None:
    server = Watched().see(1795, trouble="refuses connections")
    assert server.verdict is None
    server.see(5, trouble="refuses connections")
    assert server.verdict is not None
    assert "not ready 1800 s after its start (--start-timeout 1800)" in server.verdict


def test_0_switches_a_judgement_off() -> None:
    assert Watched(Limits(0, WEDGE)).see(1e5, trouble="refuses connections").verdict is None
    assert Watched(Limits(1800, 0)).ready().see(1e4, in_flight=1).verdict is None
    assert Watched(Limits(1800, 0)).ready().see(1e4, trouble="answers 503").verdict is None
