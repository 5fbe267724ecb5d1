"""The report as a picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_stack.bench.figures import Figures
from vllm_stack.bench.way import DIRECT, PROXY
from vllm_stack.errors import OutputError, StackError

_COLOURS = {PROXY: "#c0392b", DIRECT: "#34607d"}
_STYLES = {50: "-", 99: ":"}


def check_plot(path: Path) -> None:
    """Raise `StackError` before the load is sent, if there would be no plot after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise StackError("--plot needs matplotlib: pip install 'vllm-stack[bench]', or leave the option out")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"--plot {path}: there is no directory {path.absolute().parent}")
    if path.is_dir():
        raise OutputError(f"--plot {path} is a directory: name a file")


def draw(all_figures: Sequence[Figures], path: Path, title: str) -> None:
    """Write the plot as PNG; raises `OSError`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    _draw_times(axes[0], "Time to first token, ms (p50, dotted: p99)", all_figures, lambda one: one.first)
    _draw_times(axes[1], "Between two tokens, ms (p50, dotted: p99)", all_figures, lambda one: one.gap)
    _draw_rates(axes[2], all_figures)
    levels = sorted({one.concurrency for one in all_figures})
    for axis in axes:
        axis.set_xscale("log", base=2)
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.set_xlabel("clients at a time")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, parse_math=False)
    try:
        figure.savefig(path, dpi=110, format="png")
    finally:
        pyplot.close(figure)


def _draw_times(axis: Any, title: str, all_figures: Sequence[Figures], of: Any) -> None:
    axis.set_title(title, fontsize=10)
    for way, figures in _by_way(all_figures).items():
        for percent, style in _STYLES.items():
            points = [(one.concurrency, of(one).at(percent)) for one in figures if of(one).values]
            label = way if percent == 50 else None
            _line(axis, [(x, y * 1000) for x, y in points], way, style, label)


def _draw_rates(axis: Any, all_figures: Sequence[Figures]) -> None:
    axis.set_title("Output tokens a second", fontsize=10)
    for way, figures in _by_way(all_figures).items():
        points = [(one.concurrency, one.tokens_per_second) for one in figures]
        _line(axis, [(x, y) for x, y in points if y is not None], way, "-", way)


def _line(axis: Any, points: Sequence[tuple[float, float]], way: str, style: str, label: str | None) -> None:
    axis.plot(*(zip(*points, strict=True) if points else ([], [])), style, marker="o", markersize=3,
              color=_COLOURS[way], label=label)  # fmt: skip


def _by_way(all_figures: Sequence[Figures]) -> dict[str, list[Figures]]:
    ways = dict.fromkeys(one.way for one in all_figures)
    return {way: [one for one in all_figures if one.way == way] for way in ways}
