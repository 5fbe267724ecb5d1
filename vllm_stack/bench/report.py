"""The report: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vllm_stack.bench.figures import Cost, Difference, Figures
from vllm_stack.bench.quantiles import SHOWN, Quantiles
from vllm_stack.bench.way import clients, in_words

_UNSURE = "~"


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured, and what is to be said of it; `told` is what was sent, for programs."""

    figures: Sequence[Figures]
    costs: Sequence[Cost]
    notes: Sequence[str]
    told: dict[str, Any]


def as_tables(report: Report) -> list[RenderableType]:
    """Give what is printed, piece by piece."""
    pieces: list[RenderableType] = [_figures(report.figures)]
    if report.costs:
        pieces += [Text(), Text("What the proxy adds to the medians (lowest and highest of the rounds):")]
        pieces += [_costs(report.costs)]
    lines = [*_remarks(report.figures), *report.notes]
    return [*pieces, *([Text()] if lines else []), *(Text(line) for line in lines)]


def as_json(report: Report) -> str:
    """Give the report for programs: times in seconds, rates a second."""
    told = {
        **report.told,
        "levels": [_told(one) for one in report.figures],
        "proxy_adds": [_cost_told(one) for one in report.costs],
        "notes": [*_remarks(report.figures), *report.notes],
    }
    return json.dumps(told, indent=2)


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _figures(all_figures: Sequence[Figures]) -> Table:
    table = _table()
    table.add_column("clients", justify="right")
    table.add_column("way")
    for name in ("requests", "failed", "req/s", "tokens/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("TTFT ms", "ITL ms"):
        table.add_column(f"{name}  " + " / ".join(f"p{percent}" for percent in SHOWN), no_wrap=True)
    with_goodput = any(one.good is not None for one in all_figures)
    if with_goodput:
        table.add_column("good/s", justify="right")
    level = None
    for one in all_figures:
        table.add_row(
            "" if one.concurrency == level else str(one.concurrency),
            one.way,
            str(one.requests),
            str(one.requests - one.whole),
            _rate(one.requests_per_second),
            _rate(one.tokens_per_second),
            _quantiles(one.first),
            _quantiles(one.gap),
            *([_rate(one.good)] if with_goodput else []),
        )
        level = one.concurrency
    return table


def _costs(costs: Sequence[Cost]) -> Table:
    table = _table()
    table.add_column("clients", justify="right")
    table.add_column("TTFT", no_wrap=True)
    table.add_column("ITL", no_wrap=True)
    for cost in costs:
        table.add_row(str(cost.concurrency), _difference(cost.first), _difference(cost.gap))
    return table


def _remarks(all_figures: Sequence[Figures]) -> list[str]:
    """Say what failed, which percentiles are guesses, and where we measured ourselves."""
    lines = [
        f"{_where(one)}: {count} x {kind}" + (f" ({one.details[kind]})" if one.details[kind] else "")
        for one in all_figures
        for kind, count in one.errors.items()
    ]
    if any(not quantiles.is_sure(99) for one in all_figures for quantiles in (one.first, one.gap)):
        lines.append(f"{_UNSURE} stands before a percentile of too few values to have one beyond it")
    lines += [
        f"{_where(one)}: the load generator itself used {one.cpu:.0%} of a core; its own waiting is in these "
        "figures"
        for one in all_figures
        if one.generator_is_busy
    ]
    if any(one.whole and one.output_tokens is None for one in all_figures):
        lines.append("The answers do not tell how many tokens they are (usage): tokens/s is not known")
    return lines


def _where(one: Figures) -> str:
    return f"{clients(one.concurrency)} {in_words(one.way)}"


def _quantiles(quantiles: Quantiles) -> str:
    if not quantiles.values:
        return "-"
    return " / ".join(
        ("" if quantiles.is_sure(percent) else _UNSURE) + _milliseconds(quantiles.at(percent) or 0.0)
        for percent in SHOWN
    )


def _milliseconds(seconds: float) -> str:
    value = seconds * 1000
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return "-"
    overall, least, most = (_signed(value) for value in (found.overall, found.least, found.most))
    return f"{overall} ms ({least} to {most})" + (", within the noise" if found.is_noise else "")


def _signed(seconds: float) -> str:
    return ("+" if seconds >= 0 else "") + _milliseconds(seconds)


def _told(one: Figures) -> dict[str, Any]:
    return {
        "concurrency": one.concurrency,
        "way": one.way,
        "requests": one.requests,
        "errors": one.errors,
        "seconds": one.seconds,
        "requests_per_second": one.requests_per_second,
        "output_tokens_per_second": one.tokens_per_second,
        "goodput": one.good,
        "prompt_tokens": one.prompt_tokens,
        "output_tokens": one.output_tokens,
        "ttft": _percentiles(one.first),
        "itl": _percentiles(one.gap),
        "tpot": _percentiles(one.per_token),
        "latency": _percentiles(one.total),
        "servers": one.servers,
        "generator_cpu": one.cpu,
    }


def _percentiles(quantiles: Quantiles) -> dict[str, Any]:
    told: dict[str, Any] = {f"p{percent}": quantiles.at(percent) for percent in SHOWN}
    return {**told, "values": len(quantiles.values)}


def _cost_told(cost: Cost) -> dict[str, Any]:
    return {
        "concurrency": cost.concurrency,
        **{
            name: None if one is None else {"median": one.overall, "least": one.least, "most": one.most}
            for name, one in (("ttft", cost.first), ("itl", cost.gap))
        },
    }
