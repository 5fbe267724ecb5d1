"""What samples come to, however few they are."""

from __future__ import annotations

import json
import random

import pytest
from rich.console import Console

from vllm_stack.bench.burst import Burst
from vllm_stack.bench.figures import costs_of, figures_of
from vllm_stack.bench.quantiles import Quantiles
from vllm_stack.bench.report import Report, as_json, as_tables
from vllm_stack.bench.sample import Objective, Sample
from vllm_stack.bench.way import DIRECT, PROXY


def whole(first: float, gap: float = 0.01, tokens: int | None = 3) -> Sample:
    return Sample("w", first, first + 2 * gap, (gap, gap), prompt_tokens=10, output_tokens=tokens)


def burst(way: str, level: int, *samples: Sample, seconds: float = 2.0, cpu: float = 0.2) -> Burst:
    return Burst(way, level, list(samples), seconds, cpu)


LOST = Sample("w", error="503 no_ready_worker", detail="none is ready")


def report(*bursts: Burst, objective: Objective | None = None) -> Report:
    figures = figures_of(bursts, objective or Objective())
    return Report(figures, costs_of(bursts), ["a note"], {"model": "m"})


def printed(made: Report) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as capture:
        for piece in as_tables(made):
            console.print(piece)
    return capture.get()


@pytest.mark.parametrize(
    ("values", "percent", "value"),
    [
        ([], 50, None),
        ([4.0], 0, 4.0),
        ([4.0], 99, 4.0),
        ([2.0, 1.0], 50, 1.5),
        ([1.0, 2.0], 90, 1.9),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 90, 4.6),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 100, 5.0),
    ],
)
def test_a_percentile_of_few_values_lies_between_two_of_them(
    values: list[float], percent: float, value: float | None
) -> None:
    assert Quantiles.of(values).at(percent) == pytest.approx(value)


def test_percentiles_are_in_order_and_within_the_values() -> None:
    chance = random.Random(1)
    for count in range(1, 40):
        values = [chance.expovariate(1) for _ in range(count)]
        shown = [Quantiles.of(values).at(percent) or 0.0 for percent in (0, 1, 50, 90, 99, 100)]
        assert shown == sorted(shown)
        assert (shown[0], shown[-1]) == (min(values), max(values))


@pytest.mark.parametrize(
    ("count", "percent", "sure"),
    [(2, 50, True), (1, 50, False), (9, 90, False), (10, 90, True), (99, 99, False), (100, 99, True)],
)
def test_a_percentile_is_sure_when_a_value_may_lie_beyond_it(count: int, percent: int, sure: bool) -> None:
    assert Quantiles.of([1.0] * count).is_sure(percent) is sure


def test_rates_are_over_the_time_of_all_rounds_and_count_whole_answers() -> None:
    (one,) = figures_of(
        [
            burst(PROXY, 4, whole(0.1), whole(0.3), LOST),
            burst(PROXY, 4, whole(0.2), LOST, seconds=3.0, cpu=4.8),
        ],
        Objective(first=0.25),
    )
    assert (one.requests, one.whole, one.errors) == (5, 3, {"503 no_ready_worker": 2})
    assert one.requests_per_second == pytest.approx(3 / 5)
    assert one.tokens_per_second == pytest.approx(9 / 5)
    assert one.good == pytest.approx(2 / 5)
    assert one.first.values == (0.1, 0.2, 0.3)
    assert one.cpu == pytest.approx(1.0)
    assert one.generator_is_busy


def test_tokens_are_counted_only_where_the_server_counts_all() -> None:
    (one,) = figures_of([burst(PROXY, 1, whole(0.1), whole(0.1, tokens=None))], Objective())
    assert one.tokens_per_second is None
    assert one.good is None
    assert "(usage)" in printed(report(burst(PROXY, 1, whole(0.1, tokens=None))))


def test_what_the_proxy_adds_is_the_difference_of_medians_with_that_of_each_round() -> None:
    bursts = [
        burst(PROXY, 4, whole(0.12, 0.012)),
        burst(DIRECT, 4, whole(0.10, 0.010)),
        burst(DIRECT, 4, whole(0.10, 0.011)),
        burst(PROXY, 4, whole(0.13, 0.010)),
    ]
    (cost,) = costs_of(bursts)
    assert cost.first is not None
    assert cost.gap is not None
    assert (cost.first.least, cost.first.most) == pytest.approx((0.02, 0.03))
    assert cost.first.overall == pytest.approx(0.025)
    assert not cost.first.is_noise
    assert cost.gap.is_noise


def test_one_way_alone_and_a_way_without_answers_are_compared_with_nothing() -> None:
    assert costs_of([burst(PROXY, 1, whole(0.1))]) == []
    (cost,) = costs_of([burst(PROXY, 1, whole(0.1)), burst(DIRECT, 1, LOST)])
    assert (cost.first, cost.gap) == (None, None)
    assert "-" in printed(report(burst(PROXY, 1, whole(0.1)), burst(DIRECT, 1, LOST)))


def test_the_report_shows_levels_errors_and_what_it_is_not_sure_of() -> None:
    text = printed(
        report(
            burst(PROXY, 1, whole(0.0123), LOST),
            burst(DIRECT, 1, whole(0.0111), cpu=1.9),
            objective=Objective(first=1),
        )
    )
    assert "12.3 / ~12.3 / ~12.3" in text
    assert "+1.20 ms" in text
    assert "1 client through the proxy: 1 x 503 no_ready_worker (none is ready)" in text
    assert "1 client directly: the load generator itself used 95% of a core" in text
    assert "good/s" in text
    assert "a note" in text


def test_text_of_others_is_no_markup() -> None:
    lost = Sample("w", error="400 [red]bad[/red]", detail="[/]")
    assert "400 [red]bad[/red] ([/])" in printed(report(burst(PROXY, 1, lost)))


def test_the_json_has_seconds_and_how_many_values_there_were() -> None:
    told = json.loads(as_json(report(burst(PROXY, 1, whole(0.25)), burst(DIRECT, 1, whole(0.125)))))
    assert told["model"] == "m"
    assert told["levels"][0]["ttft"] == {"p50": 0.25, "p90": 0.25, "p99": 0.25, "values": 1}
    assert told["levels"][0]["itl"]["values"] == 2
    assert told["proxy_adds"] == [
        {
            "concurrency": 1,
            "ttft": {"median": 0.125, "least": 0.125, "most": 0.125},
            "itl": {"median": 0.0, "least": 0.0, "most": 0.0},
        }
    ]
