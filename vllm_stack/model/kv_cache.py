"""How much of a GPU the KV cache of one request takes, by vLLM's own arithmetic."""

from __future__ import annotations

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import Demand
from vllm_stack.model.rules import kv_heads_per_gpu
from vllm_stack.sizes import GIB

BLOCK = 16
"""Tokens in a block of the KV cache (vllm/config/cache.py, DEFAULT_BLOCK_SIZE)."""

# Bits of one element (vllm/config/cache.py, CacheDType); the turboquant family is left out: not told.
_KV_BITS = {
    "float16": 16,
    "bfloat16": 16,
    "fp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "fp8_inc": 8,
    "fp8_ds_mla": 8,
    "fp8_per_token_head": 8,
    "int8_per_token_head": 8,
    "int4_per_token_head": 4,
    "nvfp4": 4,
    "nvfp4_4over6": 4,
}
_BITS_32 = frozenset({"float", "float32"})


def bytes_per_token(config: ModelConfig, size: int, bits: int = 16) -> int | None:
    """Give what one token takes in the KV cache of each of `size` GPUs, all layers together.

    AttentionSpec and MLAAttentionSpec of vllm/v1/kv_cache_interface.py. Layers with a window keep only
    the last tokens, which is not counted here.
    """
    per_layer = elements_per_token(config, size)
    if per_layer is None or config.cached_layers is None:
        return None
    return config.cached_layers * per_layer * bits // 8


def elements_per_token(config: ModelConfig, size: int) -> int | None:
    """Give the elements that one layer keeps of a token on one GPU."""
    if config.mla_latent is not None:
        return config.mla_latent
    heads = kv_heads_per_gpu(config, size)
    return None if heads is None or config.head_size is None else 2 * heads * config.head_size


def bits_of_element(config: ModelConfig, demand: Demand) -> int | None:
    """Resolve `--kv-cache-dtype auto`: the checkpoint's own, else the model's.

    vllm/utils/torch_utils.py, resolve_kv_cache_dtype_string. A model in float32 is served in 16 bits
    (vllm/config/model.py, _resolve_auto_dtype).
    """
    asked = (demand.kv_cache_dtype or "auto").lower()
    if asked == "auto":
        asked = config.kv_dtype or ("float32" if is_wide(demand.dtype) else "float16")
    return 32 if asked in _BITS_32 else _KV_BITS.get(asked)


def is_wide(dtype: str | None) -> bool:
    """Tell whether `--dtype` asks for 32 bits."""
    return (dtype or "").lower() in _BITS_32


def allotted_tokens(full: int, windowed: int, window: int, length: int, in_flight: int) -> int:
    """Give the tokens vLLM makes room for, over all layers, in whole blocks and with one to spare.

    SlidingWindowSpec of vllm/v1/kv_cache_interface.py: a window is held with what is in flight. Layers
    of both kinds are laid out in groups of one size, filled up where they do not divide
    (_get_kv_cache_groups_uniform_page_size).
    """
    blocks = _blocks(length)
    if not windowed:
        return full * (blocks + 1) * BLOCK
    cut = min(_blocks(min(window - 1 + in_flight, length)) + 1, blocks + 1)
    if not full:
        return windowed * (cut + 1) * BLOCK
    group = min(full, windowed)
    if max(full, windowed) < 1.5 * group:
        group = max(full, windowed)
    full_groups, windowed_groups = -(-full // group), -(-windowed // group)
    return group * (full_groups * blocks + windowed_groups * cut + 1) * BLOCK


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK)


def tokens_in_flight(demand: Demand) -> int:
    """Give the tokens of the two batches that are under way at once.

    vllm/config/vllm.py, max_in_flight_tokens; vllm/engine/arg_utils.py, get_batch_defaults, for a
    server.
    """
    default = 16384 if demand.memory_total >= 160 * GIB else 8192 if demand.memory_total >= 70 * GIB else 2048
    return 2 * (demand.batched_tokens or default)
