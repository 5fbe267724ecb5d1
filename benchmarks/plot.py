"""The record as bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Record

# Title, figure, and for each group of bars its name and its measurement.
_PANELS = (
    ("CPU per request, us", "cpu_us", (("64 connections", "requests-64"), ("4,096", "requests-4096"))),
    ("CPU per streamed event, us", "cpu_us", (("64 streams", "streams-64"), ("256", "streams-256"))),
    ("Time to first event at 64 streams, p99, ms", "p99_ms", (("", "streams-64"),)),
    ("Memory per open stream, kB", "stream_kb", (("", "memory"),)),
)
_OURS, _THEIRS = ("#c0392b", "#e6a39b"), ("#34607d", "#9fbdd0")


def draw(record: Record, path: Path, title: str) -> None:
    """Write the plot as PNG; the lines on the bars span the rounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for axis, (name, value, groups) in zip(axes.flat, _PANELS, strict=True):
        _panel(axis, record, name, value, groups)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _panel(axis: Any, record: Record, title: str, value: str, groups: Sequence[tuple[str, str]]) -> None:
    axis.set_title(title)
    targets = list(dict.fromkeys(target for _, name in groups for target in record.targets(name)))
    if value == "cpu_us":
        targets = [target for target in targets if target != "direct"]
    height = 0.8 / len(groups)
    for shade, (label, measurement) in enumerate(groups):
        for row, target in enumerate(targets):
            found = record.summary(measurement, target, value)
            if found is None:
                continue
            axis.barh(
                row + shade * height,
                found.median,
                height,
                color=(_OURS if target == "ours" else _THEIRS)[shade],
                xerr=[[found.median - found.low], [found.high - found.median]],
                label=label if row == 0 and label else None,
            )
            axis.annotate(
                f" {found.median:,.1f}", (found.high, row + shade * height), va="center", fontsize=8
            )
    axis.set_yticks([row + height * (len(groups) - 1) / 2 for row in range(len(targets))], targets)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    if any(label for label, _ in groups) and targets:
        axis.legend(title="dark and light" if len(groups) > 1 else None, fontsize=8)
