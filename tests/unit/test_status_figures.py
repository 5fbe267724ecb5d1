"""What workers and the proxy count: read from what they print, and what happens in a second."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_stack.proxy.admin import _traffic
from vllm_stack.proxy.tally import FIRST_BYTE, Tally
from vllm_stack.status.figures import Figures, read_figures
from vllm_stack.status.looks import Look, Looks, compare
from vllm_stack.status.progress import read_progress
from vllm_stack.status.rates import TokenRates, TrafficRates, token_rates, traffic_rates
from vllm_stack.status.sparkline import sparkline
from vllm_stack.status.traffic import Histogram, Traffic, read_traffic

RECORDED = Path(__file__).parent / "recorded"

# As vLLM 0.32.0 prints them.
METRICS = rb"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="/models/tiny"} 2.0
vllm:num_requests_waiting{engine="0",model_name="/models/tiny"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="/models/tiny",reason="capacity"} 1.0
vllm:kv_cache_usage_perc{engine="0",model_name="/models/tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="/models/tiny"} 168.0
vllm:prefix_cache_queries_created{engine="0",model_name="/models/tiny"} 1.7957359420654302e+09
vllm:prefix_cache_hits_total{engine="0",model_name="/models/tiny"} 42.0
vllm:prompt_tokens_total{engine="0",model_name="/models/tiny"} 1.68e+02
vllm:prompt_tokens_by_source_total{engine="0",model_name="/models/tiny",source="local_compute"} 168.0
vllm:generation_tokens_total{engine="0",model_name="/models/tiny"} 90.0
"""


def test_a_servers_own_metrics_are_read() -> None:
    figures = read_figures(METRICS, 7.0)
    assert figures == Figures(7.0, 2, 3, 0.25, 168.0, 90.0, 168.0, 42.0)
    assert figures.prefix_hit_rate == 0.25


def test_engines_are_added_up_and_the_fullest_cache_counts() -> None:
    other = METRICS.replace(b'engine="0"', b'engine="1"').replace(b"} 0.25", b"} 0.75")
    figures = read_figures(METRICS + other, 0.0)
    assert (figures.waiting, figures.generated_tokens, figures.kv_cache) == (6, 180.0, 0.75)


def test_a_models_name_may_hold_what_ends_labels() -> None:
    figures = read_figures(METRICS.replace(b"/models/tiny", rb"a} 9.0 \" {b"), 0.0)
    assert figures == read_figures(METRICS, 0.0)


@pytest.mark.parametrize("text", [b"", b"<html>", b"vllm:num_requests_waiting 3 4\nvllm:"])
def test_what_is_not_told_is_not_known(text: bytes) -> None:
    figures = read_figures(text, 0.0)
    assert figures.generated_tokens is None
    assert figures.prefix_hit_rate is None


def test_before_the_first_prompt_there_is_no_hit_rate() -> None:
    assert Figures(0.0, prefix_queries=0.0, prefix_hits=0.0).prefix_hit_rate is None


# The proxy's.


def page(first_byte: tuple[int, ...], requests: list[dict[str, Any]]) -> dict[str, Any]:
    servers = [
        {"name": "worker-0", "itself": False, "first_byte": {"counts": first_byte, "sum": 1.0}},
        {"name": "proxy", "itself": True, "first_byte": {"counts": (9, 9, 9), "sum": 1.0}},
    ]
    return {"requests": requests, "first_byte_bounds": (0.1, 1.0), "servers": servers}


def ended(code: int, number: int, route: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"route": route, "method": "POST", "code": code, "number": number}


def test_traffic_is_what_clients_sent_and_servers_answered() -> None:
    requests = [ended(200, 10), ended(401, 2), ended(502, 1), ended(504, 1), ended(200, 500, "/health")]
    traffic = read_traffic(page((4, 6, 0), requests), 3.0)
    assert traffic == Traffic(3.0, 14, 2, Histogram((0.1, 1.0), (4, 6, 0)))


def test_the_page_of_the_admin_door_is_what_is_read() -> None:
    tally = Tally(rows=2, servers=1)
    row = tally.row(1)
    row.count(b"/v1/models", b"GET", 200, 0, FIRST_BYTE[2], 0.5, 10, 20)
    row.count(b"/v1/completions", b"POST", 503, None, None, 0.5, 10, 20)
    row.count(b"/health", b"GET", 200, None, 0.001, 0.001, 0, 0)
    backends = SimpleNamespace(all=[SimpleNamespace(name="worker-0")])
    door: Any = SimpleNamespace(board=SimpleNamespace(tally=tally), backends=backends)
    counts = tuple(int(place == 2) for place in range(len(FIRST_BYTE) + 1))
    found = read_traffic(json.loads(json.dumps(_traffic(door))), 0.0)
    assert found == Traffic(0.0, 2, 1, Histogram(FIRST_BYTE, counts))


@pytest.mark.parametrize("other", [{}, {"requests": None}, {"requests": [], "first_byte_bounds": (1,)}])
def test_another_answer_is_no_traffic(other: dict[str, Any]) -> None:
    assert read_traffic(other, 0.0) is None


@pytest.mark.parametrize(
    ("counts", "share", "seconds"),
    [
        ((10, 0, 0), 0.5, 0.05),
        ((5, 5, 0), 0.5, 0.1),
        ((5, 5, 0), 0.75, 0.55),
        ((0, 0, 3), 0.5, 1.0),
        ((0, 0, 0), 0.5, None),
        ((0, 1, 1), 0.99, 1.0),
    ],
)
def test_a_quantile_is_as_prometheus_has_it(
    counts: tuple[int, ...], share: float, seconds: float | None
) -> None:
    found = Histogram((0.1, 1.0), counts).quantile(share)
    assert found == (None if seconds is None else pytest.approx(seconds))


# In a second.


def test_rates_come_from_two_looks() -> None:
    before, after = (
        Figures(1.0, prompt_tokens=10, generated_tokens=100),
        Figures(3.0, None, None, None, 30, 150),
    )
    assert token_rates(before, after) == TokenRates(10.0, 25.0)
    one, other = Traffic(1.0, 10, 0, Histogram((), (0,))), Traffic(1.5, 14, 1, Histogram((), (0,)))
    assert traffic_rates(one, other) == TrafficRates(8.0, 2.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, Figures(1.0, generated_tokens=5)),
        (Figures(1.0, generated_tokens=5), None),
        (Figures(1.0, generated_tokens=5), Figures(1.0, generated_tokens=6)),
        # Started anew in between.
        (Figures(1.0, generated_tokens=5), Figures(2.0, generated_tokens=1)),
    ],
)
def test_what_cannot_be_compared_has_no_rate(before: Figures | None, after: Figures | None) -> None:
    assert token_rates(before, after).tokens_out is None


def look(at: float, tokens: float, first_byte: tuple[int, ...] = (0, 0)) -> Look:
    traffic = Traffic(at, sum(first_byte), 0, Histogram((1.0,), first_byte))
    return Look({"worker-0": Figures(at, generated_tokens=tokens)}, traffic)


def test_looks_tell_the_last_second_the_last_minute_and_what_was_before() -> None:
    looks = Looks()
    assert looks.pace().traffic.requests is None
    for at in range(100):
        looks.add(look(at, at * 10.0, (at, 0)))
    pace = looks.pace()
    assert pace.tokens["worker-0"].tokens_out == 10.0
    assert pace.first_byte == Histogram((1.0,), (60, 0))
    assert pace.first_byte_seconds == 60.0
    assert looks.history() == {"worker-0": [10.0] * 20}


def test_a_proxy_that_was_started_anew_is_not_compared_with_the_one_before() -> None:
    looks = Looks()
    for at, count in enumerate((50, 60, 2, 5)):
        looks.add(look(at, 0.0, (count, 0)))
    assert looks.pace().first_byte == Histogram((1.0,), (3, 0))


def test_looks_without_a_proxy_are_not_kept_for_ever() -> None:
    looks = Looks()
    for at in range(200):
        looks.add(Look({"worker-0": Figures(at, generated_tokens=at)}, None))
    assert len(looks.history()["worker-0"]) == 20
    assert len(looks) < 30


def test_two_looks_are_enough_for_rates_alone() -> None:
    pace = compare(look(1.0, 10), look(2.0, 30, (5, 0)))
    assert (pace.tokens["worker-0"].tokens_out, pace.traffic.requests) == (20.0, 5.0)
    assert pace.first_byte is None


@pytest.mark.parametrize(
    ("values", "shown"),
    [([0, 50, 100], "▁▅█"), ([None, 0.1, None], " ▂ "), ([0, 0], "▁▁"), ([], "")],
)
def test_little_bars(values: list[float | None], shown: str) -> None:
    assert sparkline(values, 100.0 if any(values) else 0.0) == shown


# How far a load is.

STARTED = "2026-11-26 23:32:23 vllm-stack worker-0: started vLLM on 127.0.0.1:7601, process 6810"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "(APIServer pid=1) INFO 11-26 23:32:34 [api_utils.py:286] non-default args: {'a': 1}",
            "reads its options",
        ),
        (
            "(EngineCore pid=6) INFO 11-26 23:32:41 [core.py:133] Initializing a V1 LLM engine (v0.32.0)",
            "starts its engine",
        ),
        (
            "(Worker pid=6) INFO 11-26 23:32:50 [cpu_model_runner.py:68] Starting to load model /m...",
            "loads its weights",
        ),
        (
            "Loading safetensors checkpoint shards:  25% Completed | 1/4 [00:02<00:06,  2.05s/it]",
            "loads its weights: 25 % (1 of 4)",
        ),
        (
            "(EngineCore pid=6) Loading pt checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 399.31it/s]",
            "loads its weights: 100 % (1 of 1)",
        ),
        (
            "Loading safetensors using Runai Model Streamer:  50% Completed | 10/20 [00:02<00:06, 2.0it/s]",
            "loads its weights: 50 % (10 of 20)",
        ),
        (
            "(Worker pid=6) INFO 11-26 23:32:50 [default_loader.py:501] Loading weights took 0.00 seconds",
            "has its weights",
        ),
        ("(EngineCore pid=6) INFO 11-26 [monitor.py:40] Starting torch.compile", "compiles"),
        ("INFO 11-26 [backends.py:1167] Dynamo bytecode transform time: 5.11 s", "compiles"),
        ("INFO 11-26 [monitor.py:60] torch.compile took 21.30 s in total", "measures its memory"),
        ("INFO 11-26 [gpu_worker.py:760] Available KV cache memory: 42.17 GiB", "makes its KV cache"),
        (
            "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  45%|####5     | 30/67 [0:01<0:01]",
            "captures CUDA graphs: 45 % (30 of 67)",
        ),
        (
            "Capturing CUDA graphs (FULL): 100%|██████████| 35/35 [00:01<00:00, 24.00it/s]",
            "captures CUDA graphs: 100 % (35 of 35)",
        ),
        (
            "(EngineCore pid=6) INFO 11-26 [core.py:402] init engine (profile, create kv cache) took 3",
            "starts its server",
        ),
    ],
)
def test_a_load_is_told_by_the_last_of_its_lines_that_says_where_it_is(line: str, said: str) -> None:
    before = "(APIServer pid=1) INFO 11-26 23:32:34 [api_utils.py:286] non-default args: {'a': 1}"
    after = "(Worker pid=6) WARNING 11-26 23:32:50 [cpu_worker.py:114] libiomp is not found in LD_PRELOAD."
    assert str(read_progress([STARTED, before, line, after], "worker-0")) == said


def test_what_an_earlier_life_said_is_not_how_far_this_one_is() -> None:
    earlier = "Loading safetensors checkpoint shards: 100% Completed | 4/4 [00:02<00:00, 2.05s/it]"
    assert read_progress([earlier, STARTED, "Triton is installed"], "worker-0") is None
    assert read_progress([], "worker-0") is None


def test_a_recorded_load_comes_to_its_end() -> None:
    lines = (RECORDED / "server_killed_while_ready.txt").read_text("utf-8").splitlines()
    steps = [str(read_progress(lines[: end + 1], "worker-0")) for end in range(len(lines))]
    assert list(dict.fromkeys(steps)) == [
        "None",
        "reads its options",
        "starts its engine",
        "loads its weights",
        "has its weights",
        "warms up",
        "starts its server",
    ]
