"""The report: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vllm_stack.drill.verdict import Figures, Result, Verdict

ONE_WORKER = "not possible: one worker"
_HEAD = (
    "drill",
    "verdict",
    "sent",
    "failed",
    "cut",
    "cut silently",
    "routed around",
    "ready again",
    "left over",
)
_NONE = "-"


def has_passed(results: Sequence[Result]) -> bool:
    """Tell whether the drills prove something: one at least was held, and none failed."""
    verdicts = {result.verdict for result in results}
    return Verdict.PASSED in verdicts and verdicts <= {Verdict.PASSED, Verdict.SKIPPED}


def as_table(results: Sequence[Result]) -> list[str]:
    """Give the table line by line, and under it what was lost and what is wrong."""
    rows = [_HEAD, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = [_line(row, widths) for row in rows]
    for result in results:
        losses = result.figures.losses if result.figures else ()
        lines += [f"{result.drill}: {loss}" for loss in losses]
        mark = "" if result.verdict is Verdict.SKIPPED else f"{result.verdict.value.upper()}: "
        lines += [f"{result.drill}: {mark}{reason}" for reason in result.reasons]
    return lines


def as_json(out: str, worker: str, results: Sequence[Result]) -> str:
    """Give the report for programs; times are seconds from the fault."""
    told = {
        "out": out,
        "worker": worker,
        "passed": has_passed(results),
        "drills": [_told(result) for result in results],
    }
    return json.dumps(told, indent=2)


def _row(result: Result) -> tuple[str, ...]:
    figures = result.figures
    if figures is None:
        return (result.drill, result.verdict.value, *([_NONE] * (len(_HEAD) - 2)))
    return (
        result.drill,
        result.verdict.value,
        str(figures.sent),
        str(figures.failed),
        str(figures.cut),
        str(figures.cut_silently),
        _routed(figures),
        _seconds(figures.ready_again),
        str(len(figures.left_over)),
    )


def _routed(figures: Figures) -> str:
    return ONE_WORKER if figures.one_worker else _seconds(figures.routed_around)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Words stand left, figures right."""
    cells = [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _told(result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {
        "drill": result.drill,
        "verdict": result.verdict.value,
        "reasons": list(result.reasons),
    }
    if result.figures is not None:
        figures = asdict(result.figures)
        one_worker = figures.pop("one_worker")
        told |= figures | {"routed_around_says": ONE_WORKER if one_worker else None}
    return told
