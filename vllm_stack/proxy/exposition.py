"""Several servers' metrics in one text that Prometheus takes: every family once, with all its samples.

The lines stay what they were but for the labels put in front. Parsing them into objects and printing these
again takes thirty times as long, and all that time no stream would go on.

(format: "Exposition formats" of the Prometheus documentation, text format 0.0.4)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
_VALUE = r'"(?:[^"\\\n]|\\.)*"'
_LABEL = rf"[a-zA-Z_][a-zA-Z0-9_]*={_VALUE}"
# Nothing here can be read in two ways: the digits of a number that is none would be tried again and again.
_NUMBER = r"(?:[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?Inf|NaN)"
_SAMPLE = re.compile(rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*)?),?\}})?( {_NUMBER}(?: -?[0-9]{{1,18}})?)")
_LABEL_NAME = re.compile(rf"([^=,]+)={_VALUE}")
# Of what else a line may say of a family, Prometheus would refuse it all.
_HEADER = re.compile(
    rf"# (HELP(?= )|TYPE(?= \S+ (?:counter|gauge|histogram|summary|untyped)$)) ({_NAME})(?: .*)?"
)
# What the samples of one family are called beside its name.
_SUFFIXES = ("", "_bucket", "_sum", "_count")
# What our own are called, which stand in the same text.
_OURS = "vllm_stack_"


@dataclass(slots=True)
class Family:
    """The lines of one metric: what it is (HELP, TYPE), and its samples."""

    head: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


class BadExposition(ValueError):
    """A text that Prometheus would not take."""


def read_families(text: str, labels: Mapping[str, str]) -> dict[str, Family]:
    """Read what a server prints, with `labels` put before those of every sample.

    A label of the server's own that is called like one of them becomes `exported_...`, as Prometheus does it.
    Raises `BadExposition` for a line that is none, or that cannot stand beside the others.
    """
    front = ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())
    clash = re.compile(rf'[{{,](?:{"|".join(labels)})="').search(text) is not None
    families: dict[str, Family] = {}
    family, members = Family(), frozenset[str]()
    # Labels that are good: buckets apart, those of one sample are mostly those of many.
    seen = {None, ""}
    for line in text.split("\n"):
        if sample := _SAMPLE.fullmatch(line):
            name, own, value = sample.groups()
            if name not in members:
                family, members = families.setdefault(name, Family()), frozenset({name})
            if own not in seen:
                _check_labels(own, line)
                seen.add(own)
            if "e" in value or "E" in value:
                _check_size(value, line)
            if own and clash:
                own = _exported(own, labels)
            family.samples.append(f"{name}{{{front},{own}}}{value}" if own else f"{name}{{{front}}}{value}")
        elif header := _HEADER.fullmatch(line):
            kind, name = header.groups()
            family, members = families.setdefault(name, Family()), _members(name)
            family.head.setdefault(kind, line)
        elif line.strip() and not line.startswith("#"):
            raise BadExposition(f"{line[:100]!r} is no sample")
    for name in families:
        if name.startswith(_OURS):
            raise BadExposition(f"{name[:100]} is a name of our own")
    return families


def merge(servers: Iterable[dict[str, Family]]) -> str:
    """Put the families of several servers together; what one of them is, its first server says."""
    merged: dict[str, Family] = {}
    for families in servers:
        for name, family in families.items():
            whole = merged.setdefault(name, Family())
            whole.head = whole.head or family.head
            whole.samples.extend(family.samples)
    lines = [line for family in merged.values() for line in (*family.head.values(), *family.samples)]
    return "".join(f"{line}\n" for line in lines)


def _check_labels(labels: str, line: str) -> None:
    names = _LABEL_NAME.findall(labels)
    if len({*names, "__name__"}) <= len(names):
        raise BadExposition(f"{line[:100]!r} has a label twice")


def _check_size(value: str, line: str) -> None:
    """Raise for a number that a float of 64 bits has no place for: Go reads none, Python infinity."""
    if math.isinf(float(value.split()[0])):
        raise BadExposition(f"{line[:100]!r} has a number out of range")


def _members(family: str) -> frozenset[str]:
    return frozenset(family + suffix for suffix in _SUFFIXES)


def _exported(labels: str, taken: Mapping[str, str]) -> str:
    """Give a sample's own labels other names where they are called like ours."""
    pairs = [match[1].split("=", 1) for match in re.finditer(rf"({_LABEL})(?:,|$)", labels)]
    names = {name for name, _ in pairs}
    for pair in pairs:
        if pair[0] in taken:
            while pair[0] in taken or pair[0] in names:
                pair[0] = f"exported_{pair[0]}"
            names.add(pair[0])
    return ",".join(f"{name}={value}" for name, value in pairs)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
