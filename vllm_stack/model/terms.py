"""What one GPU of a slice must hold, thing by thing, each with two figures.

What it is thought to be, and what it is at the very least. All sizes are in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import WHOLE_WINDOWS, Demand
from vllm_stack.model.kv_cache import (
    allotted_tokens,
    bits_of_element,
    elements_per_token,
    is_wide,
    tokens_in_flight,
)
from vllm_stack.sizes import GIB
from vllm_stack.vllm_arguments import AUTO

# What vLLM loads of a model in parts at the very least, in hundredths: a cautious guess, since the language
# model is by far the largest of them.
_LEAST_OF_PARTS = 60


@dataclass(frozen=True, slots=True)
class Term:
    """One thing a GPU must hold: the estimate, the least it can be, and how they were come to."""

    name: str
    bytes: int
    least: int
    how: str


def weights_term(config: ModelConfig, demand: Demand) -> Term | None:
    """Share the files among the GPUs: norms, small matrices and rounding make it more, nothing less."""
    stored = config.weight_bytes
    if stored is None:
        return None
    wide, widest = _wide_bytes(config, stored)
    if is_wide(demand.dtype):
        loaded = 2 * stored - wide if config.quantization is None else stored
        least = stored
    else:
        loaded = stored - wide // 2 if config.quantization is None else stored
        least = stored - widest // 2
    # Layers for speculative decoding stay in the files without it; each has an embedding, too, which is
    # taken for a layer. Hybrid models have them without a word in the config.
    layers, drafts = config.layers or 1, config.draft_layers
    loaded = loaded * layers // (layers + drafts)
    least = least * layers // (layers + 2 * max(drafts, int(config.hybrid)))
    how = "the weights" if demand.gpus == 1 else f"its {_ordinal(demand.gpus)} of the weights"
    if config.in_parts:
        least = least * _LEAST_OF_PARTS // 100
        how += ", parts of which vLLM may not load"
    return Term("weights", -(-loaded // demand.gpus), -(-least // demand.gpus), how)


def _wide_bytes(config: ModelConfig, stored: int) -> tuple[int, int]:
    """Give what is kept in 32 bits: what is thought, and the most that it can be.

    A config without a type is taken for one of float32 where the files do not tell otherwise
    (vllm/transformers_utils/model_arch_config_convertor.py, get_torch_dtype).
    """
    if config.wide_bytes is not None:
        wide = min(config.wide_bytes, stored)
        return wide, wide
    wide = stored if config.dtype == "float32" else 0
    return wide, stored if config.dtype is None else wide


def _ordinal(size: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(size, f"{size}th")


def kv_term(config: ModelConfig, demand: Demand, length: int) -> Term | None:
    """Give the KV cache of one request of `length` tokens, None where the files do not tell."""
    bits = bits_of_element(config, demand)
    elements = elements_per_token(config, demand.size)
    layers = config.cached_layers
    if bits is None or elements is None or layers is None:
        return None
    windowed = 0 if WHOLE_WINDOWS in demand.asked else min(config.windowed_layers, layers)
    # Which of them a stage gets is not known: as many of each kind as the others.
    layers, windowed = -(-layers // demand.stages), windowed // demand.stages
    window = config.window or length
    least = (layers - windowed) * length + windowed * min(window, length)
    tokens = allotted_tokens(layers - windowed, windowed, window, length, tokens_in_flight(demand))
    what = "a request" if demand.max_length == AUTO else f"a request of {length} tokens"
    how = f"the KV cache of {what}"
    return Term("KV cache", tokens * elements * bits // 8, least * elements * bits // 8, how)


def rest_term(demand: Demand) -> Term:
    """Guess what is neither weights nor cache; it depends on kernels and is measured by vLLM's trial run.

    Start-up logs of vLLM show 0.4 to 1.4 GiB of activations, 0.1 to 0.7 GiB outside of torch (more with
    NCCL, between GPUs) and 0.3 to 0.5 GiB of CUDA graphs; all of it less on small GPUs.
    """
    alone = min(2 * GIB, demand.memory_total // 10)
    between = min(GIB // 2, demand.memory_total // 40) if demand.gpus > 1 else 0
    return Term("the rest", alone + between, 0, "activations, CUDA graphs and CUDA itself")
