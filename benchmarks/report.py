"""The record as text: Markdown that also reads well on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.extent import Extent
from benchmarks.figures import Record, Summary, summarize
from benchmarks.goals import GOALS, Goal, against, verdict


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures depend on beside the proxies."""

    date: str
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    cores: str
    cores_of_two: str
    extent: Extent


def markdown(record: Record, circumstances: Circumstances) -> str:
    """Give the whole report."""
    sections = [
        f"# Benchmark of {circumstances.date}",
        *_faults(record),
        _goals(record),
        *_loads(record),
        *_memory(record),
        *_processes(record, circumstances),
        _circumstances(record, circumstances),
    ]
    return "\n\n".join(sections) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Give a Markdown table; the first column to the left, all others to the right."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"| {' | '.join([first, *rest])} |"

    return "\n".join([line(lines[0]), f"| {' | '.join(rule)} |", *map(line, lines[1:])])


def show(summary: Summary | None, digits: int = 1) -> str:
    """Give the median, and the range where there was more than one round."""
    if summary is None:
        return "-"
    median = f"{summary.median:,.{digits}f}"
    if summary.low == summary.high:
        return median
    return f"{median} ({summary.low:,.{digits}f}-{summary.high:,.{digits}f})"


# ------------------------------------------------------------------ sections


def _faults(record: Record) -> list[str]:
    lines = [f"* **{name} was left out**: {_one_line(why)}" for name, why in record.skipped.items()]
    lines += [f"* **WRONG**: {_one_line(fault)}" for fault in record.faults]
    return ["\n".join(lines)] if lines else []


def _goals(record: Record) -> str:
    rows = [_goal_row(goal, record) for goal in GOALS]
    return "## Goals\n\n" + table(("", "measured", "goal", "at least"), rows)


def _goal_row(goal: Goal, record: Record) -> tuple[str, ...]:
    found = summarize(goal.values(record))

    def judged(limit: float | None) -> str:
        if limit is None:
            return "-"
        return f"<= {limit:g} {goal.unit}: {verdict(found.median, limit) if found else 'not measured'}"

    measured = f"{show(found, 2)} {goal.unit}" if found else "not measured"
    return goal.row, measured, judged(goal.goal), judged(goal.at_least)


def _loads(record: Record) -> list[str]:
    measurements = list(dict.fromkeys(name for name, _ in record.rounds))
    sections = []
    for measurement in measurements:
        kind, _, number = measurement.partition("-")
        if kind == "requests":
            title = f"Requests, {int(number):,} connections"
            sections.append(_load(record, measurement, title, "request", "latency"))
        elif kind == "streams":
            title = f"Streams, {number} at a time"
            sections.append(_load(record, measurement, title, "event", "first event"))
    return sections


def _load(record: Record, measurement: str, title: str, piece: str, time: str) -> str:
    streamed = piece == "event"
    header = [
        "",
        f"us CPU per {piece}",
        "ours is",
        f"{piece}s/s",
        *(["kept up", "events a read"] if streamed else []),
        "core busy",
        f"{time} p50 ms",
        "p99 ms",
    ]
    rows = [_load_row(record, measurement, target, streamed) for target in record.targets(measurement)]
    return f"## {title}\n\n" + table(header, rows)


def _load_row(record: Record, measurement: str, target: str, streamed: bool) -> list[str]:
    def get(figure: str) -> Summary | None:
        return record.summary(measurement, target, figure)

    direct = target == "direct"
    return [
        target,
        "-" if direct else show(get("cpu_us")),
        "-" if direct or target == "ours" else _ratio(record, measurement, target),
        show(get("per_second"), 0),
        *([_percent(get("kept_up")), show(get("bunch"), 2)] if streamed else []),
        "-" if direct else _percent(get("cpu_share")),
        show(get("p50_ms"), 2),
        show(get("p99_ms"), 2),
    ]


def _ratio(record: Record, measurement: str, target: str) -> str:
    found = summarize(against(measurement, target)(record))
    return f"{show(found, 2)} x" if found else "-"


def _percent(summary: Summary | None) -> str:
    return "-" if summary is None else f"{summary.median:.0%}"


def _memory(record: Record) -> list[str]:
    targets = record.targets("memory")
    if not targets:
        return []
    rows = [
        (
            target,
            show(record.summary("memory", target, "empty_mb")),
            show(record.summary("memory", target, "idle_kb")),
            show(record.summary("memory", target, "stream_kb")),
        )
        for target in targets
    ]
    header = ("", "just started, MB", "per idle connection, kB", "per open stream, kB")
    return ["## Memory (PSS of all processes)\n\n" + table(header, rows)]


def _processes(record: Record, circumstances: Circumstances) -> list[str]:
    targets = record.targets("processes")
    if not targets:
        return []
    rows = [
        (
            target,
            show(record.summary("processes", target, "cpu_us")),
            show(record.summary("processes", target, "per_second"), 0),
            show(record.summary("processes", target, "cpu_share"), 2),
            _percent(record.summary("processes", target, "busiest")),
            show(record.summary("processes", target, "p50_ms"), 2),
            show(record.summary("processes", target, "p99_ms"), 2),
        )
        for target in targets
    ]
    header = (
        "",
        "us CPU per request",
        "requests/s",
        "cores busy",
        "of it the busiest process",
        "latency p50 ms",
        "p99 ms",
    )
    title = f"## Two processes\n\nCores: {circumstances.cores_of_two}."
    return [f"{title}\n\n{table(header, rows)}"]


def _circumstances(record: Record, circumstances: Circumstances) -> str:
    extent = circumstances.extent
    lines = [f"* {name}: {text}" for name, text in circumstances.machine.items()]
    lines += [
        f"* Cores: {circumstances.cores}",
        f"* {extent.rounds} round(s), in each of them every proxy in turn; median (lowest-highest); ratios "
        "are taken within a round",
        f"* Requests: 1.2 kB in, 0.6 kB out, kept connections, windows of {extent.request_seconds:g} s "
        f"({extent.many_seconds:g} s with many connections); the clients send without a pause, so "
        "requests/s is what the proxy's core, or the load's, can do",
        f"* Streams: 100 events, 10 ms apart, windows of {extent.stream_seconds:g} s; the first event comes "
        "at once, and the beginnings of the streams are spread evenly",
        f"* Memory: {extent.idle_connections:,} idle connections after one answer each; "
        f"{extent.held_streams:,} streams in the middle of their answers",
    ]
    proxies = [
        (name, version, circumstances.settings.get(name, ""))
        for name, version in circumstances.versions.items()
    ]
    return "## Circumstances\n\n" + "\n".join(lines) + "\n\n" + table(("", "version", "settings"), proxies)


def _one_line(text: str) -> str:
    return " ".join(text.split())
