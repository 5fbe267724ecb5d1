"""What a server's own metrics say, as far as a person wants to see it at a glance."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A line of vLLM's (vllm/v1/metrics/loggers.py). A brace may stand in a label's value (a model's name), so
# the last one that a number follows ends the labels.
_LINE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|prompt_tokens_total"
    rb"|generation_tokens_total|prefix_cache_queries_total|prefix_cache_hits_total)(?:\{.*\})? ([0-9.eE+-]+)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Figures:
    """A server at the moment `at` (`time.monotonic`); None is what it does not tell.

    Tokens and looks into the prefix cache (which are tokens, too) count from the server's start, over
    all its engines. `kv_cache` is the share in use, from 0 to 1, of the engine whose cache is fullest.
    """

    at: float
    running: int | None = None
    waiting: int | None = None
    kv_cache: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None

    @property
    def prefix_hit_rate(self) -> float | None:
        """The share of the prompts' tokens that was in the prefix cache, since the start; 0 to 1."""
        if not self.prefix_queries or self.prefix_hits is None:
            return None
        return self.prefix_hits / self.prefix_queries


def read_figures(metrics: bytes, at: float) -> Figures:
    """Read them from metrics in Prometheus' text format, which were given at the moment `at`."""
    found: dict[bytes, list[float]] = {}
    for name, value in _LINE.findall(metrics):
        found.setdefault(name, []).append(float(value))

    def total(name: bytes) -> float | None:
        return sum(found[name]) if name in found else None

    running, waiting = total(b"num_requests_running"), total(b"num_requests_waiting")
    return Figures(
        at=at,
        running=None if running is None else int(running),
        waiting=None if waiting is None else int(waiting),
        kv_cache=max(found.get(b"kv_cache_usage_perc", ()), default=None),
        prompt_tokens=total(b"prompt_tokens_total"),
        generated_tokens=total(b"generation_tokens_total"),
        prefix_queries=total(b"prefix_cache_queries_total"),
        prefix_hits=total(b"prefix_cache_hits_total"),
    )
