"""Whether one GPU of a slice holds its part of the model and the KV cache of one long request.

Every term has two figures: what it is thought to be, and what it is at the very least. Where the least
of all together is more than the GPU may give, vLLM refuses after minutes of loading; where only the
estimate is, it may start. vLLM's own check is `_check_enough_kv_cache_memory` in
vllm/v1/core/kv_cache_utils.py: the budget less the weights and less what a trial run took must hold one
sequence of `--max-model-len`, and one block more. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import Demand
from vllm_stack.model.doubts import doubts_of, unknowns_of
from vllm_stack.model.terms import Term, kv_term, rest_term, weights_term
from vllm_stack.sizes import gib
from vllm_stack.vllm_arguments import AUTO

Verdict = Literal["fits", "tight", "too-big"]


@dataclass(frozen=True, slots=True)
class Fit:
    """What one GPU of a slice must hold against what it may give.

    `doubts` say why it may need less than `least`, `unknowns` what is not in the sum. `kv_cache` is what
    one request needs; where `kv_cache_bytes` fixes the cache it has to fit in there. `way_out` is how to
    make it fit.
    """

    size: int
    terms: tuple[Term, ...]
    budget: int
    budget_how: str
    doubts: tuple[str, ...] = ()
    unknowns: tuple[str, ...] = ()
    kv_cache: Term | None = None
    kv_cache_bytes: int | None = None
    way_out: str = ""

    @property
    def total(self) -> int:
        return sum(term.bytes for term in self.terms)

    @property
    def least(self) -> int:
        return sum(term.least for term in self.terms)

    @property
    def verdict(self) -> Verdict:
        least, estimate = self.least > self.budget, self.total > self.budget
        if self.kv_cache is not None and self.kv_cache_bytes is not None:
            least = least or self.kv_cache.least > self.kv_cache_bytes
            estimate = estimate or self.kv_cache.bytes > self.kv_cache_bytes
        if least and not self.doubts:
            return "too-big"
        return "tight" if least or estimate else "fits"

    def sentence(self) -> str:
        """Say the figures, the verdict and the way out in one sentence."""
        verdict = self.verdict
        sure = verdict == "too-big"
        figures = [(term, term.least if sure else term.bytes) for term in self.terms]
        parts = " + ".join(f"{gib(size)} for {term.how}" for term, size in figures if size)
        whole = gib(sum(size for _, size in figures))
        amount = f"at least {whole}" if sure else f"about {whole}"
        who = "The GPU" if self.size == 1 else f"Each of the {self.size} GPUs"
        sentence = f"{who} must hold {amount} ({parts})"
        sentence += f" of the {gib(self.budget)} that vLLM may use ({self.budget_how})"
        if self.kv_cache is not None and self.kv_cache_bytes is not None:
            needed = self.kv_cache.least if sure else self.kv_cache.bytes
            if needed > self.kv_cache_bytes:
                sentence += (
                    f", and --kv-cache-memory-bytes gives {gib(self.kv_cache_bytes)} to a request that "
                    f"needs {gib(needed)}"
                )
        if verdict != "fits":
            sentence += ", so vLLM would not start" if sure else ", so vLLM may not start"
        notes = "; ".join((*self.doubts, *self.unknowns))
        if notes:
            sentence += f", though {notes}"
        return f"{sentence}: {self.way_out}" if verdict != "fits" and self.way_out else sentence


def weigh(config: ModelConfig, demand: Demand) -> Fit:
    """Weigh what one GPU must hold against what it may give; the way out is left open."""
    length = _length(config, demand)
    weights = weights_term(config, demand)
    kv_cache = None if length is None else kv_term(config, demand, length)
    rest = rest_term(demand)
    held, budget, budget_how = kv_cache, int(demand.memory_total * demand.share), _share_how(demand)
    if demand.kv_cache_bytes is not None:
        # Then vLLM does not heed the share (gpu_worker.py, determine_available_memory).
        fixed = demand.kv_cache_bytes
        held = Term("KV cache", fixed, fixed, "the KV cache that --kv-cache-memory-bytes asks for")
        budget, budget_how = demand.memory_total, "all of it, for --kv-cache-memory-bytes"
    return Fit(
        size=demand.gpus,
        terms=tuple(term for term in (weights, held, rest) if term is not None),
        budget=budget,
        budget_how=budget_how,
        doubts=doubts_of(config, demand),
        unknowns=unknowns_of(config, demand, weights, kv_cache),
        kv_cache=kv_cache,
        kv_cache_bytes=demand.kv_cache_bytes,
    )


def _share_how(demand: Demand) -> str:
    return f"{gib(demand.memory_total)} x {demand.share:.2f}"


def _length(config: ModelConfig, demand: Demand) -> int | None:
    """Give the tokens vLLM must find room for: with `auto` it is content with one."""
    if demand.max_length == AUTO:
        return 1
    return config.max_length if demand.max_length is None else max(1, demand.max_length)
