"""Every cause of a worker's end that is recognised, on one page of Markdown, as the rules tell them.

It becomes docs/causes.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vllm_stack.worker.rules import GROUPS, Rule

_FOREWORD = """\
# Why a worker ended

This page is written by `make docs` from the rules by which a worker's wrapper judges
(`vllm_stack/worker/rules.py`).

When vLLM ends, the wrapper looks at its last lines, its exit code and the kernel's count of OOM kills. What
it finds is the sentence in `vllm-stack status`, on the dashboard, in `out/logs/worker-N.log` and in
`out/run/state/worker-N.failure.json`. Words in italics stand for what it found. Where no rule holds, the
sentence says that the cause is not known; `vllm-stack logs worker-N -n 200` has the last words then.

Whatever the cause, the worker starts again after `--restart-delay`. What was mended on the machine meanwhile
holds from that start on; other options hold after `vllm-stack render` and `vllm-stack roll`.
"""
_FIELD = re.compile(r"\{(?P<name>\w+)\}")


def reference() -> str:
    """Give the whole page."""
    parts = (line for title, rules in GROUPS.items() for line in _group(title, rules))
    return "\n".join((_FOREWORD, *parts))


def _group(title: str, rules: Sequence[Rule]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| cause | what is said |"
    yield "|---|---|"
    yield from map(_row, rules)
    yield ""


def _row(rule: Rule) -> str:
    sentence = _FIELD.sub(lambda field: f"*{field['name'].replace('_', ' ')}*", rule.sentence)
    return f"| {rule.name} | {sentence.replace('|', chr(92) + '|')} |"
