"""What `status` calls a worker, and the stack: never ready unless it has just said so itself."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from vllm_stack.records.drain_order import DrainOrder, Reason
from vllm_stack.records.phase import Phase, PhaseNote
from vllm_stack.roll.record import RollRecord
from vllm_stack.status.picture import Pace, Picture, compose
from vllm_stack.status.sights import Place, ProxySight, Sights, Standing, WorkerSight
from vllm_stack.status.state import State, judge
from vllm_stack.status.verdict import exit_code, summary
from vllm_stack.worker.failure import Failure, new_failure

NAME = "worker-0"


def note(phase: Phase, detail: str = "", since: float = 1.0, until: float | None = None) -> PhaseNote:
    return PhaseNote(phase, since, until, detail)


def failure(cause: str | None = "it was killed from outside") -> Failure:
    return replace(new_failure(-9, 39.0, "ready"), cause=cause, examined=cause is not None)


def sight(
    seen: PhaseNote | None, program: str = "RUNNING", trouble: str | None = None, **more: Any
) -> WorkerSight:
    return WorkerSight(seen, program, trouble, **more)


@pytest.mark.parametrize(
    ("seen", "program", "trouble", "state"),
    [
        (note(Phase.READY), "RUNNING", None, "ready"),
        (note(Phase.READY), "STARTING", None, "ready"),
        (note(Phase.READY), "RUNNING", "refuses connections", "not answering"),
        (note(Phase.READY), "STOPPING", None, "stopping"),
        (note(Phase.READY), "", None, "ready"),
        (note(Phase.STARTING), "STARTING", "refuses connections", "loading"),
        (note(Phase.STARTING), "STARTING", None, "ready"),
        (note(Phase.WAITING, "vLLM was killed"), "STARTING", None, "waiting"),
        (note(Phase.QUEUED), "RUNNING", None, "queued"),
        (note(Phase.BLOCKED), "STARTING", None, "blocked"),
        (note(Phase.WEDGED), "RUNNING", None, "wedged"),
        (note(Phase.STOPPING), "STOPPING", None, "stopping"),
        # No wrapper lives: whatever supervisord says, nobody serves.
        (None, "RUNNING", None, "starting"),
        (None, "STARTING", None, "starting"),
        (None, "STOPPING", None, "stopping"),
        (None, "STOPPED", None, "stopped"),
        (None, "EXITED", None, "stopped"),
        (None, "BACKOFF", None, "failed"),
        (None, "FATAL", None, "failed"),
        (None, "", None, "unknown"),
    ],
)
def test_a_worker_is_what_its_wrapper_and_its_own_health_say(
    seen: PhaseNote | None, program: str, trouble: str | None, state: str
) -> None:
    assert judge(NAME, sight(seen, program, trouble))[0] == state


@pytest.mark.parametrize(
    ("seen", "trouble", "in_flight", "state"),
    [
        (note(Phase.READY), None, 0, "drained"),
        (note(Phase.READY), None, 2, "draining"),
        (note(Phase.READY), None, None, "drained"),
        (note(Phase.STARTING), "refuses connections", 0, "loading"),
        (note(Phase.READY), "does not answer", 1, "not answering"),
    ],
)
def test_an_order_is_told_beside_what_the_worker_does(
    seen: PhaseNote, trouble: str | None, in_flight: int | None, state: str
) -> None:
    standing = None if in_flight is None else Standing("drained", in_flight, 0)
    order = DrainOrder(0.0, "alice", Reason.BY_HAND)
    found, detail = judge(NAME, sight(seen, trouble=trouble, standing=standing, order=order))
    assert found == state
    assert "by alice since" in detail
    assert "readmit takes it back" in detail


@pytest.mark.parametrize(
    ("reason", "words"),
    [(Reason.ROLL, "vllm-stack roll finishes it"), (Reason.UNFIT, "it answered 500")],
)
def test_an_order_says_what_to_do(reason: Reason, words: str) -> None:
    order = DrainOrder(0.0, "a", reason, "it answered 500")
    assert words in judge(NAME, sight(note(Phase.READY), order=order))[1]


def test_a_server_that_has_just_ended_has_failed_while_its_wrapper_clears_up() -> None:
    ready = note(Phase.READY, since=time.time() - 100)
    state, detail = judge(NAME, sight(ready, trouble="refuses connections", failure=failure(None)))
    assert (state, detail) == ("failed", "vLLM was killed by SIGKILL; why is being looked into")
    # An older failure has nothing to do with it.
    later = note(Phase.READY, since=time.time() + 100)
    state, _ = judge(NAME, sight(later, trouble="refuses connections", failure=failure()))
    assert state == "not answering"


def test_between_two_lives_of_its_wrapper_a_worker_has_failed_and_not_started() -> None:
    state, detail = judge(NAME, sight(None, "STARTING", failure=failure()))
    assert (state, detail) == ("failed", "vLLM was killed by SIGKILL after 39 s: it was killed from outside")
    assert judge(NAME, sight(None, "STOPPED", failure=failure()))[0] == "stopped"


def test_a_load_tells_how_far_it_is() -> None:
    log = ["Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01, 1.9it/s]"]
    loads = sight(note(Phase.STARTING), "STARTING", "refuses connections", log=log)
    assert judge(NAME, loads) == ("loading", "it loads its weights: 50 % (2 of 4)")


def test_a_worker_that_is_well_and_gets_nothing_says_so() -> None:
    out = sight(note(Phase.READY), standing=Standing("late", 0, 0))
    assert judge(NAME, out) == (
        "ready",
        "it says it is well, but the proxy does not send to it (late)",
    )


def test_a_late_answer_takes_a_worker_out_of_nobodys_choice_but_ours() -> None:
    late = sight(note(Phase.READY), trouble="does not answer", standing=Standing("ready", 3, 1))
    assert judge(NAME, late) == (
        "not answering",
        "it was ready, but now does not answer; the proxy still sends to it",
    )


# The whole stack.


def picture(
    *workers: WorkerSight,
    proxy: str = "RUNNING",
    door: bool = True,
    supervisord: str = "running",
    **more: Any,
) -> Picture:
    places = [Place(f"worker-{number}", "m", f"127.0.0.1:{5001 + number}") for number in range(len(workers))]
    upstreams: dict[str, Standing] = more.pop("upstreams", {})
    places += [Place(name, "m", "elsewhere:8000", remote=True) for name in upstreams]
    sights = Sights(
        at=1000.0,
        supervisord=supervisord,
        proxy_program=proxy,
        proxy_since=900.0,
        proxy=ProxySight(upstreams, more.pop("waiting", 0), {}) if door else None,
        workers={place.name: seen for place, seen in zip(places, workers, strict=False)},
        **more,
    )
    return compose("http://127.0.0.1:8000/v1", places, sights, Pace())


READY = sight(note(Phase.READY))
WAITING = sight(note(Phase.WAITING, "vLLM was killed", until=1012.0))
DRAINED = sight(note(Phase.READY), order=DrainOrder(0.0, "a", Reason.BY_HAND))
UP, DOWN = Standing("ready", 0, 1), Standing("not listening", 0, 0)


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (picture(READY, READY), 0, "Both workers are ready."),
        (picture(READY), 0, "The worker is ready."),
        (picture(READY, WAITING), 1, "1 of 2 workers is ready (starts again in 12 s: worker-1)."),
        (picture(READY, DRAINED), 1, "1 of 2 workers is ready (drained: worker-1)."),
        (picture(WAITING), 3, "Nothing serves: the worker is not ready (starts again in 12 s: worker-0)."),
        (picture(DRAINED), 3, "Nothing serves: the worker is not ready (drained: worker-0)."),
        (picture(*[WAITING] * 5), 3, "worker-2 and 2 more)."),
        (
            picture(READY, proxy="STOPPED", door=False),
            3,
            "because the proxy is stopped: the worker is ready.",
        ),
        (picture(READY, door=False), 3, "Nothing serves, because the proxy does not answer"),
        (
            picture(
                sight(note(Phase.READY), "STOPPING"), proxy="STOPPING", door=False, supervisord="stopping"
            ),
            3,
            "Supervisord is shutting down: the worker is not ready (stopping: worker-0).",
        ),
        # It does not tell, but the proxy and the worker do.
        (picture(sight(note(Phase.READY), ""), proxy="", supervisord="not answering"), 0, "does not answer"),
        (picture(upstreams={"upstream-0": UP, "upstream-1": UP}), 0, "Both upstreams are ready."),
        (picture(upstreams={"upstream-0": UP, "upstream-1": DOWN}), 1, "1 of 2 upstreams is ready."),
        (picture(upstreams={"upstream-0": DOWN}), 3, "Nothing serves: the upstream is not ready."),
        (picture(WAITING, upstreams={"upstream-0": UP}), 1, "The worker is not ready"),
        (picture(READY, upstreams={"upstream-0": DOWN}), 0, "The worker is ready."),
        (picture(READY, waiting=1), 0, "1 request waits for a worker."),
    ],
)
def test_the_stack_is_as_well_as_what_serves(found: Picture, code: int, said: str) -> None:
    assert exit_code(found) == code
    assert said in summary(found)


def test_a_model_that_nobody_serves_is_named() -> None:
    found = picture(READY, WAITING)
    one, other = found.workers
    several = replace(found, workers=(one, replace(other, place=replace(other.place, model="reader"))))
    assert "Nobody serves reader." in summary(several)
    assert exit_code(several) == 1


@pytest.mark.parametrize(("rolling", "said"), [(True, "A roll is under way."), (False, "was broken off.")])
def test_a_roll_is_told(rolling: bool, said: str) -> None:
    roll = RollRecord(900.0, "alice", {"worker-0": "a", "worker-1": "b"}, ("worker-0",))
    found = picture(READY, READY, roll=roll, rolling=rolling)
    assert said in summary(found)
    assert found.roll is not None
    assert found.roll.left == ("worker-1",)


def test_every_state_has_a_word_of_its_own() -> None:
    assert len({str(state) for state in State}) == len(State)
