"""What is asked of the GPUs of one worker, as far as it decides whether a model fits."""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_SIZE = 16
"""The most GPUs that a worker is thought to have."""
WHOLE_WINDOWS = "--disable-hybrid-kv-cache-manager"
"""With it layers with a window keep as much as the others."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a slice of `size` GPUs of `memory_total` bytes, `share` of which vLLM may use.

    `stages` such slices make a worker, each with its part of the layers.
    `max_length` is in tokens: None for the model's own, `vllm_arguments.AUTO` for what fits. The other
    options are those of vLLM, None where not given. `asked` holds those of `doubts.WATCHED` that were
    given. `most_gpus` are the GPUs that a worker could have here at most.
    """

    size: int
    memory_total: int
    share: float
    max_length: int | None = None
    kv_cache_dtype: str | None = None
    kv_cache_bytes: int | None = None
    dtype: str | None = None
    batched_tokens: int | None = None
    asked: frozenset[str] = frozenset()
    most_gpus: int = LARGEST_SIZE
    stages: int = 1

    @property
    def gpus(self) -> int:
        """All GPUs of a worker."""
        return self.size * self.stages
