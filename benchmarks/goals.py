"""What the proxy is to reach, in one place, and whether it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.figures import Record, differences, ratios


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: the lower the value, the better; the median of all rounds decides.

    Without limits the row only states what was measured.
    """

    row: str
    values: Callable[[Record], list[float]]
    goal: float | None
    at_least: float | None
    unit: str


def verdict(median: float, limit: float) -> str:
    """Say whether a figure keeps to its limit."""
    return "met" if median <= limit else "missed"


def against(measurement: str, other: str, figure: str = "cpu_us") -> Callable[[Record], list[float]]:
    """Give ours divided by theirs."""
    return lambda record: ratios(
        record.series(measurement, "ours", figure), record.series(measurement, other, figure)
    )


def added(measurement: str, figure: str) -> Callable[[Record], list[float]]:
    """Give what we add to the direct way."""
    return lambda record: differences(
        record.series(measurement, "ours", figure), record.series(measurement, "direct", figure)
    )


def growth(measurement: str, start: str) -> Callable[[Record], list[float]]:
    """Give our cost under one load divided by our cost under another."""
    return lambda record: ratios(
        record.series(measurement, "ours", "cpu_us"), record.series(start, "ours", "cpu_us")
    )


def plain(measurement: str, figure: str) -> Callable[[Record], list[float]]:
    return lambda record: list(record.series(measurement, "ours", figure).values())


def two_against_one(figure: str) -> Callable[[Record], list[float]]:
    return lambda record: ratios(
        record.series("processes", "ours-x2", figure), record.series("processes", "ours", figure)
    )


def unix_against_tcp(measurement: str) -> Callable[[Record], list[float]]:
    return lambda record: ratios(
        record.series(measurement, "ours-unix", "cpu_us"), record.series(measurement, "ours", "cpu_us")
    )


def _cpu_goals() -> list[Goal]:
    limits = (
        ("request", "", "requests-64", "vllm-router", 0.60, 0.80),
        ("request", "", "requests-64", "haproxy", 3.0, 4.0),
        ("event", ", 64 streams", "streams-64", "vllm-router", 0.65, 0.90),
        ("event", ", 256 streams", "streams-256", "vllm-router", 0.75, 0.95),
        ("event", ", 64 streams", "streams-64", "haproxy", 1.4, 1.8),
        ("event", ", 256 streams", "streams-256", "haproxy", 1.4, 1.8),
        ("event", ", 64 streams", "streams-64", "haproxy-no-delay", 1.4, 1.8),
        ("event", ", 256 streams", "streams-256", "haproxy-no-delay", 1.4, 1.8),
    )
    return [
        Goal(f"CPU per {piece}{load}, against {other}", against(measurement, other), goal, at_least, "x")
        for piece, load, measurement, other, goal, at_least in limits
    ]


def _growth_goals() -> list[Goal]:
    return [
        Goal(
            f"CPU per request at {connections:,} connections, against 64",
            growth(f"requests-{connections}", "requests-64"),
            1.3,
            1.6,
            "x",
        )
        for connections in (1024, 4096)
    ]


GOALS = (
    *_cpu_goals(),
    Goal("added time to first event, 64 streams, p50", added("streams-64", "p50_ms"), 1.0, 2.0, "ms"),
    Goal("added time to first event, 64 streams, p99", added("streams-64", "p99_ms"), 5.0, 10.0, "ms"),
    *_growth_goals(),
    Goal("memory per open stream", plain("memory", "stream_kb"), 25.0, 40.0, "kB"),
    Goal("memory per idle connection", plain("memory", "idle_kb"), 12.0, 20.0, "kB"),
    *(
        Goal(f"{piece}, workers on unix sockets against TCP", unix_against_tcp(measurement), None, None, "x")
        for piece, measurement in (("CPU per request", "requests-64"), ("CPU per event", "streams-64"))
    ),
    Goal("two processes against one: requests per second", two_against_one("per_second"), None, None, "x"),
    Goal("two processes against one: CPU per request", two_against_one("cpu_us"), None, None, "x"),
)
