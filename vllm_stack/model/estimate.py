"""Whether a model fits, what would make it fit, and how much of what fits: found by weighing it anew."""

from __future__ import annotations

from dataclasses import replace

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import Demand
from vllm_stack.model.fit import Fit, weigh
from vllm_stack.model.kv_cache import BLOCK, bits_of_element, bytes_per_token
from vllm_stack.model.rules import divides
from vllm_stack.model.terms import kv_term
from vllm_stack.vllm_arguments import AUTO, DEFAULT_SHARE

# More boxes for one model than anybody has; beyond it the answer is another model.
_MOST_STAGES = 16


def estimate(config: ModelConfig, demand: Demand) -> Fit:
    """Weigh what one GPU must hold, and look for a way out if that is too much."""
    fit = weigh(config, demand)
    return fit if fit.verdict == "fits" else replace(fit, way_out=_way_out(config, demand))


def longest_context(config: ModelConfig, demand: Demand) -> int | None:
    """Give the longest `--max-model-len` that fits, in tokens, up to what was asked or the model has.

    A whole number of blocks, unless it is all of that; 0 where not even one block fits; None where the
    files do not tell enough.
    """
    asked = demand.max_length if demand.max_length is not None and demand.max_length > 0 else None
    most = asked or config.max_length
    if most is None or config.weight_bytes is None or kv_term(config, demand, most) is None:
        return None
    if _fits_with(config, demand, most):
        return most
    low, high = 0, most // BLOCK
    while low < high:
        middle = (low + high + 1) // 2
        if _fits_with(config, demand, middle * BLOCK):
            low = middle
        else:
            high = middle - 1
    return low * BLOCK


def smallest_size(config: ModelConfig, demand: Demand) -> int | None:
    """Give the fewest GPUs, up to `demand.most_gpus`, that can share the model out and hold it.

    `demand.size` does not matter. None where none does, or the files do not tell.
    """
    return _size_that_fits(config, demand, 1)


def room_for(config: ModelConfig, demand: Demand) -> int | None:
    """Give the tokens of all requests together for which the KV cache has room, in whole blocks.

    None where the files do not tell. Layers with a window are counted as if they had none, so there may be
    room for more.
    """
    bits = bits_of_element(config, demand)
    each = None if bits is None else bytes_per_token(config, demand.size, bits)
    if not each or config.weight_bytes is None:
        return None
    fit = weigh(config, demand)
    room = demand.kv_cache_bytes
    if room is None:
        room = fit.budget - sum(term.bytes for term in fit.terms if term is not fit.kv_cache)
    return max(0, room * demand.stages // (each * BLOCK)) * BLOCK


def stages_for(config: ModelConfig, demand: Demand) -> tuple[int, int] | None:
    """Give the GPUs of a stage and the fewest stages, one a box, that hold a model no box holds alone.

    None where one box does, or it cannot be told.
    """
    if config.weight_bytes is None or config.attention_heads is None:
        return None
    if _size_that_fits(config, replace(demand, stages=1), 1) is not None:
        return None
    sizes = [size for size in range(demand.most_gpus, 0, -1) if divides(config, size)]
    for stages in range(2, _MOST_STAGES + 1):
        if sizes and weigh(config, replace(demand, size=sizes[0], stages=stages)).verdict == "fits":
            return sizes[0], stages
    return None


def _way_out(config: ModelConfig, demand: Demand) -> str:
    """Name the options that would make it fit, the shorter context only where it is of use."""
    ways: list[str] = []
    if (size := _size_that_fits(config, demand, demand.size + 1)) is not None:
        ways.append(f"--tensor-parallel-size {size}")
    if demand.share < DEFAULT_SHARE and demand.kv_cache_bytes is None:
        larger = replace(demand, share=DEFAULT_SHARE)
        if weigh(config, larger).verdict == "fits":
            ways.append(f"--gpu-memory-utilization {DEFAULT_SHARE} after `--`")
    if demand.max_length != AUTO:
        longest = longest_context(config, demand)
        if longest is not None and longest >= _useful(config):
            ways.append(f"--max-model-len {longest} after `--`")
    if demand.kv_cache_bytes is not None:
        ways.append("another --kv-cache-memory-bytes")
    if not ways:
        return "use GPUs with more memory, or the model in a smaller quantization"
    return "use " + " or ".join(ways)


def _size_that_fits(config: ModelConfig, demand: Demand, least: int) -> int | None:
    if config.weight_bytes is None or config.attention_heads is None:
        return None
    for size in range(least, demand.most_gpus + 1):
        if divides(config, size) and weigh(config, replace(demand, size=size)).verdict == "fits":
            return size
    return None


def _useful(config: ModelConfig) -> int:
    return min(1024, config.max_length or 1024)


def _fits_with(config: ModelConfig, demand: Demand, length: int) -> bool:
    return weigh(config, replace(demand, max_length=length)).verdict == "fits"
