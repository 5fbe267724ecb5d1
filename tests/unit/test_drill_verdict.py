"""The judgement of a drill, from scripted outcomes: what passes, and every single thing that must not be."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vllm_stack.drill.answer import Ending, Outcome
from vllm_stack.drill.report import as_json, as_table, has_passed
from vllm_stack.drill.trees import Recorded
from vllm_stack.drill.verdict import SPREAD, Evidence, Result, Verdict, judge

STRUCK = 100.0
BACK = 110.0


def outcome(begun: float, ended: float, ending: Ending = Ending.WHOLE, **other: object) -> Outcome:
    """A stream that flows 0.1 s after it began."""
    status = 200 if ending is not Ending.FAILED else 503
    made = Outcome(begun, begun + 0.1, ended, streamed=True, ending=ending, status=status, detail="why")
    return replace(made, **other)  # type: ignore[arg-type]


BEFORE, AFTER, AT_LAST = outcome(98, 101), outcome(100.5, 102), outcome(111, 112)
HEALTHY = Evidence(
    on_proxy=False,
    outcomes=(BEFORE, outcome(99, 100.1, Ending.CUT), AFTER, AT_LAST),
    sampled=STRUCK - 0.01,
    struck=STRUCK,
    exposed=2,
    ports=None,
    others=1,
    out=STRUCK + 0.2,
    back=BACK,
)


def and_also(*more: Outcome) -> Evidence:
    return replace(HEALTHY, outcomes=(*HEALTHY.outcomes, *more))


def test_a_drill_passes_whose_cut_streams_were_all_on_the_hurt_worker() -> None:
    result = judge("engine", HEALTHY)
    assert (result.verdict, result.reasons) == (Verdict.PASSED, ())
    figures = result.figures
    assert figures is not None
    assert (figures.sent, figures.whole, figures.cut, figures.failed) == (4, 3, 1, 0)
    assert figures.routed_around == pytest.approx(0.2)
    assert figures.ready_again == pytest.approx(10)
    assert figures.losses == ("1 x cut: why",)


CUT = outcome(99, 100.2, Ending.CUT)
LATE = STRUCK + 0.2 + SPREAD + 0.1


@pytest.mark.parametrize(
    ("evidence", "says"),
    [
        pytest.param(and_also(outcome(99, 100.2, Ending.SILENT)), "1 answer was cut silently", id="silent"),
        pytest.param(
            and_also(outcome(99, 100.2, Ending.SILENT, streamed=False)),
            "1 answer was cut silently",
            id="whole",
        ),
        pytest.param(and_also(outcome(99, 100.2, Ending.BROKEN)), "1 stream broke without", id="broken"),
        pytest.param(and_also(CUT, CUT), "1 stream got lost that cannot", id="another worker's stream"),
        pytest.param(
            and_also(outcome(LATE, LATE + 1, Ending.FAILED)), "1 request began after that was over", id="late"
        ),
        pytest.param(
            and_also(outcome(BACK + 9, BACK + 10, Ending.CUT)), "1 request began after", id="after the return"
        ),
        pytest.param(
            replace(HEALTHY, outcomes=HEALTHY.outcomes[:-1]),
            "No request that began after the return",
            id="mute",
        ),
        pytest.param(replace(HEALTHY, back=None, gave_up="Not in time"), "Not in time", id="not back"),
        pytest.param(
            replace(HEALTHY, left_over=(Recorded(7, 1.0, "x::EngineCore"),)),
            "1 process left over: 7 x::EngineCore",
            id="left over",
        ),
    ],
)
def test_each_thing_that_must_not_be_fails_the_drill_and_is_said(evidence: Evidence, says: str) -> None:
    result = judge("engine", evidence)
    assert result.verdict is Verdict.FAILED
    assert len(result.reasons) == 1
    assert says in result.reasons[0]


def test_what_is_no_fault_of_the_stack_is_counted_and_does_not_fail_the_drill() -> None:
    """Requests of the moment of the fault, the operator's own limit, and what the drill ended itself."""
    result = judge(
        "engine",
        and_also(
            outcome(99.5, 100.3, Ending.FAILED, streamed=False),
            outcome(LATE, LATE + 1, Ending.FAILED, status=429),
            outcome(LATE, LATE + 1, Ending.UNFINISHED),
            # They had not begun to flow when the load was asked for: they may have gone anywhere.
            outcome(99.95, 100.2, Ending.CUT),
            outcome(99.96, 100.2, Ending.CUT),
        ),
    )
    assert (result.verdict, result.reasons) == (Verdict.PASSED, ())
    assert result.figures is not None
    assert (result.figures.failed, result.figures.unfinished) == (2, 1)


def test_a_struck_process_of_the_proxy_breaks_its_own_connections_and_no_others() -> None:
    on_it, elsewhere = (outcome(99, 100, Ending.BROKEN, port=port) for port in (1, 2))
    evidence = replace(
        HEALTHY, on_proxy=True, outcomes=(BEFORE, on_it, AFTER, AT_LAST), ports=frozenset({1}), out=None
    )
    passed = judge("proxy", evidence)
    assert (passed.verdict, passed.reasons) == (Verdict.PASSED, ())
    assert passed.figures is not None
    assert (passed.figures.failed, passed.figures.broken) == (1, 1)
    assert passed.figures.routed_around == pytest.approx(2)
    failed = judge("proxy", replace(evidence, outcomes=(*evidence.outcomes, elsewhere)))
    assert "1 stream got lost that cannot have been on the process of the proxy struck" in failed.reasons[0]


def test_with_one_worker_nothing_can_be_routed_around_and_the_report_says_so() -> None:
    """Requests that fail while it is away are counted, and are no defect."""
    away = outcome(LATE, LATE + 1, Ending.FAILED)
    result = judge("engine", replace(and_also(away), others=0))
    assert result.verdict is Verdict.PASSED
    assert "not possible: one worker" in as_table([result])[1]
    told = json.loads(as_json("out", "worker-0", [result]))["drills"][0]
    assert (told["routed_around"], told["routed_around_says"]) == (None, "not possible: one worker")
    assert told["failed"] == 1


def test_a_worker_that_was_never_seen_out_is_routed_around_when_a_request_is_answered() -> None:
    result = judge("restart", replace(HEALTHY, out=None))
    assert result.figures is not None
    assert result.figures.routed_around == pytest.approx(2)


def test_requests_that_never_got_through_are_told_as_never() -> None:
    failing = outcome(100.5, 101, Ending.FAILED)
    result = judge("engine", replace(HEALTHY, outcomes=(BEFORE, failing), back=None, gave_up="Not in time"))
    assert result.figures is not None
    assert result.figures.routed_around is None
    assert "never" in as_table([result])[1]


PASSED = judge("engine", HEALTHY)
SKIPPED = Result("hang", Verdict.SKIPPED, ("The watch is off",))
NOT_RUN = Result("restart", Verdict.NOT_RUN, ("supervisord is gone",))


@pytest.mark.parametrize(
    ("results", "passed"),
    [
        ([PASSED], True),
        ([PASSED, SKIPPED], True),
        ([SKIPPED], False),
        ([PASSED, NOT_RUN], False),
        ([PASSED, Result("proxy", Verdict.FAILED, ("x",))], False),
    ],
)
def test_only_drills_that_were_held_and_passed_prove_anything(results: list[Result], passed: bool) -> None:
    assert has_passed(results) is passed


def test_the_table_is_as_wide_as_a_terminal_and_says_why_under_it() -> None:
    lines = as_table([PASSED, SKIPPED, NOT_RUN])
    assert max(map(len, lines)) <= 110
    assert "hang: The watch is off" in lines
    assert "restart: NOT RUN: supervisord is gone" in lines
