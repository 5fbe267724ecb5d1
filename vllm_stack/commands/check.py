"""`vllm-stack check`: what `render` would refuse or warn of, as a table; nothing is written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

import click

from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import model_in
from vllm_stack.commands.examine import examine
from vllm_stack.options import Options

# Letters of a measured value: what the user passed on can be long.
_LONGEST = 200
_COLOURS = {"ok": "green", "warning": "yellow", "refused": "red", "skipped": "blue"}


def check_machine(models: Sequence[Options], as_json: bool) -> int:
    """Run all checks and show their findings; gives the exit code, 1 if any of them refused."""
    examined = examine(models)
    findings = examined.findings
    if as_json:
        click.echo(json.dumps({**_as_json(findings), "decisions": examined.decisions}, indent=2))
    else:
        for line in (*table(findings), *examined.decisions):
            click.echo(line)
    return int(any(finding.verdict == "refused" for finding in findings.values()))


def _as_json(findings: Mapping[str, Finding]) -> dict[str, object]:
    return {
        "ok": all(finding.verdict != "refused" for finding in findings.values()),
        "checks": [
            {
                "name": row.partition(" ")[0],
                "model": model_in(row) or None,
                "verdict": finding.verdict,
                "value": finding.value,
                "advice": finding.advice,
            }
            for row, finding in findings.items()
        ],
    }


def table(findings: Mapping[str, Finding]) -> Iterator[str]:
    """Give one row for each check, what to do below it, and a last line that sums up."""
    name_width = max(len(name) for name in ("check", *findings))
    verdict_width = max(len(verdict) for verdict in _COLOURS)
    yield f"{'check'.ljust(name_width)}  {'verdict'.ljust(verdict_width)}  measured"
    for name, finding in findings.items():
        verdict = click.style(finding.verdict.ljust(verdict_width), fg=_COLOURS[finding.verdict])
        yield f"{name.ljust(name_width)}  {verdict}  {_shortened(finding.value)}".rstrip()
        if finding.advice:
            yield f"{' ' * (name_width + 2)}-> {finding.advice}"
    yield _sum_up(findings)


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def _sum_up(findings: Mapping[str, Finding]) -> str:
    verdicts = [finding.verdict for finding in findings.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("refused", "warning", "skipped")}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    ends = "render would write nothing" if counts["refused"] else "render would write the stack"
    return f"{len(verdicts)} checks{f', {said}' if said else ', all well'}: {ends}."
