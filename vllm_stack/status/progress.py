"""How far a server has come that loads, from what vLLM 0.32 prints on its way.

A line without a figure says where vLLM is, because it prints most of them when something is done: after
"Loading weights took" it profiles, and says nothing for as long as that lasts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# `tqdm` (of weights "{desc}: {percentage}% Completed | {n}/{total}", else its own form).
_BAR = re.compile(
    r"(?P<what>[A-Z][^|%]*?): +(?P<percent>\d+)%[^|]*\|(?:[^|]*\|)? *(?P<done>\d+)/(?P<of>\d+) "
)
_BARS = (
    (re.compile(r"Loading .*(?:checkpoint|safetensors)"), "loads its weights"),
    (re.compile(r"Capturing .*graphs"), "captures CUDA graphs"),
)
# In the order of a load; some come again (a draft model, an encoder), so the last one in the log counts.
_STEPS = (
    ("non-default args", "reads its options"),
    ("Initializing a V1 LLM engine", "starts its engine"),
    ("Starting to load model", "loads its weights"),
    ("Time spent downloading weights", "loads its weights"),
    ("Loading weights took", "has its weights"),
    ("Model loading took", "has its weights"),
    ("Starting torch.compile", "compiles"),
    ("Warming up model for the compilation", "compiles"),
    ("Dynamo bytecode transform time", "compiles"),
    ("Compiling a graph for compile range", "compiles"),
    ("Directly load", "compiles"),
    ("torch.compile took", "measures its memory"),
    ("torch.compile and initial profiling", "measures its memory"),
    ("Warming up done", "warms up"),
    ("Available KV cache memory", "makes its KV cache"),
    ("KV cache size:", "warms up"),
    ("Graph capturing finished", "warms up"),
    ("init engine (profile", "starts its server"),
    ("Starting vLLM server", "starts its server"),
)


# What vllm_stack.ray.conductor says; Ray's own lines tell nobody how far it is.
_OF_RAY = re.compile(
    r"vllm-stack ray: (?P<what>(?:waiting for more boxes|deploying|vllm is|health is)[^\n]{0,200})"
)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a server does that loads, in words, and how much of that is done in percent, if it tells."""

    step: str
    percent: int | None = None
    count: str = ""

    def __str__(self) -> str:
        return self.step if self.percent is None else f"{self.step}: {self.percent} % ({self.count})"


def read_progress(lines: Sequence[str], name: str) -> Progress | None:
    """Give how far the last start in a worker's log has come; None where it has said nothing yet."""
    for line in reversed(lines):
        if f"vllm-stack {name}: started " in line:
            return None
        if (said := _OF_RAY.search(line)) is not None:
            return Progress(said["what"])
        if (progress := _of(line)) is not None:
            return progress
    return None


def _of(line: str) -> Progress | None:
    bar = _BAR.search(line)
    if bar is not None:
        for pattern, step in _BARS:
            if pattern.search(bar["what"]):
                return Progress(step, int(bar["percent"]), f"{bar['done']} of {bar['of']}")
    return next((Progress(step) for text, step in _STEPS if text in line), None)
