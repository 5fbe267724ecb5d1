"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_stack.errors import StackError

Verdict = Literal["ok", "warning", "refused", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict of one check, the value that was measured, and the sentence that says what to do.

    `error` is what `render` ends with; there is one only if the verdict is "refused".
    """

    verdict: Verdict
    value: str
    advice: str = ""
    error: StackError | None = None


def ok(value: str) -> Finding:
    """Nothing is to be done."""
    return Finding("ok", value)


def warning(value: str, advice: str) -> Finding:
    """It may go wrong, or be slow: the stack is rendered, and the advice shown."""
    return Finding("warning", value, advice)


def refused(value: str, error: StackError) -> Finding:
    """It cannot work: nothing is rendered."""
    return Finding("refused", value, str(error), error)
