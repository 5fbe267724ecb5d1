"""What an engine says of itself, out of the metrics that its server prints (vllm/v1/metrics/loggers.py)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

_KV_CACHE = b"vllm:kv_cache_usage_perc"


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Sums over the engines of a server; None for what it does not print.

    `at` is when it said so (seconds, monotonic), `kv_cache` the share in use (0 to 1, a mean). The
    others are requests, or tokens since the start of the server.
    """

    at: float
    running: float | None
    waiting: float | None
    kv_cache: float | None
    prompt_tokens: float | None
    generation_tokens: float | None
    prefix_queries: float | None
    prefix_hits: float | None


def read_figures(text: bytes, at: float) -> EngineFigures:
    """Find the figures in a Prometheus text of the moment `at`.

    Looked for one by one: parsing all of its thousand lines would hold up streams for tens of ms.
    """
    text = b"\n" + text
    usage = list(_values(text, _KV_CACHE))

    def total(name: bytes) -> float | None:
        values = list(_values(text, name))
        return sum(values) if values else None

    return EngineFigures(
        at=at,
        running=total(b"vllm:num_requests_running"),
        waiting=total(b"vllm:num_requests_waiting"),
        kv_cache=sum(usage) / len(usage) if usage else None,
        prompt_tokens=total(b"vllm:prompt_tokens_total"),
        generation_tokens=total(b"vllm:generation_tokens_total"),
        prefix_queries=total(b"vllm:prefix_cache_queries_total"),
        prefix_hits=total(b"vllm:prefix_cache_hits_total"),
    )


def _values(text: bytes, name: bytes) -> Iterator[float]:
    """Give the samples of exactly this name, one an engine; what is no finite number counts as none."""
    begin = b"\n" + name
    at = text.find(begin)
    while at >= 0:
        end = text.find(b"\n", at + 1)
        line = text[at + len(begin) : end if end >= 0 else None]
        if line[:1] in (b"{", b" "):
            try:
                value = float(line.rpartition(b" ")[2])
            except ValueError:
                value = math.nan
            if math.isfinite(value):
                yield value
        at = text.find(begin, end) if end >= 0 else -1
