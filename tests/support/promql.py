"""What a PromQL expression asks for: the metrics it names, with the labels that it chooses and groups by."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
  | (?P<range>\[[^\]]*\])
  | (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:ms|[smhdwy])?)
  | (?P<word>[a-zA-Z_:][a-zA-Z0-9_:]*)
  | (?P<sign>=~|!~|!=|==|<=|>=|[-+*/%^<>={}(),])
    """,
    re.VERBOSE,
)
_OPERATORS = {"and", "or", "unless", "bool", "offset"}
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}


@dataclass
class Question:
    """A metric, and the labels that must be among those of its samples."""

    metric: str
    labels: set[str] = field(default_factory=set)


def questions(expression: str) -> tuple[list[Question], set[str]]:
    """Give every selector, and the labels that are grouped or joined by; `ValueError` for no PromQL."""
    tokens = _tokens(expression)
    found: list[Question] = []
    grouped: set[str] = set()
    at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        at += 1
        if kind != "word" or text in _OPERATORS:
            continue
        if text in _LISTS and following == "(":
            end = at + [text for _, text in tokens[at:]].index(")")
            grouped |= {text for kind, text in tokens[at:end] if kind == "word"}
            at = end + 1
        elif following == "{":
            end = at + [text for _, text in tokens[at:]].index("}")
            words = tokens[at:end]
            found.append(Question(text, {text for kind, text in words if kind == "word"}))
            at = end + 1
        elif text not in _LISTS and following != "(" and following not in _LISTS:  # else it is a function
            found.append(Question(text))
    return found, grouped


def _tokens(expression: str) -> list[tuple[str, str]]:
    tokens = []
    at = 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None or match.lastgroup is None:
            raise ValueError(f"no PromQL at {expression[at : at + 20]!r}")
        at = match.end()
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match[0]))
    return tokens
