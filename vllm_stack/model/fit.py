"""Whether one GPU of a slice holds its part of the model and the KV cache of one long request.

Every term has two figures: what it is thought to be, and what it is at the very least. Where the least
of all together is more than the GPU may give, vLLM refuses after minutes of loading; where only the
estimate is, it may start. vLLM's own check is `_check_enough_kv_cache_memory` in
vllm/v1/core/kv_cache_utils.py: the budget less the weights and less what a trial run took must hold one
sequence of `--max-model-len`, and one block more. All sizes are in bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from vllm_stack.errors import UsageError
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.rules import divides, kv_heads_per_gpu
from vllm_stack.sizes import GIB, gib
from vllm_stack.vllm_arguments import DEFAULT_SHARE

Verdict = Literal["fits", "tight", "too-big"]

AUTO = -1
"""`--max-model-len auto`: as long as the memory allows."""
BLOCK = 16
"""Tokens in a block of the KV cache (vllm/config/cache.py, DEFAULT_BLOCK_SIZE)."""
LARGEST_SIZE = 16
# What vLLM loads of a model in parts at the very least, in hundredths: a cautious guess, since the language
# model is by far the largest of them.
_LEAST_OF_PARTS = 60

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

# Options (and a variable) of vLLM that can make a GPU need less than its plain share.
_LOOSENS = {
    "--cpu-offload-gb": "--cpu-offload-gb moves weights out of the GPU",
    "--cpu-offload-params": "--cpu-offload-params moves weights out of the GPU",
    "--decode-context-parallel-size": "--decode-context-parallel-size splits the KV cache once more",
    "--disable-sliding-window": "--disable-sliding-window changes the maximum length",
    "--hf-overrides": "--hf-overrides changes the model's config",
    "--hf-config-path": "--hf-config-path gives the model another config",
    "--kv-cache-dtype-skip-layers": "--kv-cache-dtype-skip-layers gives layers another type",
    "--language-model-only": "--language-model-only leaves a part of the weights out",
    "--limit-mm-per-prompt": "--limit-mm-per-prompt may leave a part of the weights out",
    "--load-format": "--load-format loads other weights",
    "--mm-encoder-only": "--mm-encoder-only leaves a part of the weights out",
    "--num-gpu-blocks-override": "--num-gpu-blocks-override sets the size of the KV cache",
    "--offload-backend": "--offload-backend moves weights out of the GPU",
    "--offload-group-size": "--offload-group-size moves weights out of the GPU",
    "--runner": "--runner may do without a KV cache",
    "VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "the KV cache of chunked layers is cut",
}
_CONVERTS = "--quantization converts the weights while they load"
# And those that make it need more, by an amount that the files do not tell.
_ADDS = {
    "--enable-lora": "LoRA adapters are not counted",
    "--speculative-config": "the draft model is not counted",
    "--spec-model": "the draft model is not counted",
}
_WHOLE_WINDOWS = "--disable-hybrid-kv-cache-manager"
WATCHED = (*_LOOSENS, *_ADDS, _WHOLE_WINDOWS, "--quantization")
"""The names `Demand.asked` may hold."""

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])", re.ASCII)
_SCALES = {letter: 10**power for letter, power in zip("kmgt", (3, 6, 9, 12), strict=True)} | {
    letter: 2**power for letter, power in zip("KMGT", (10, 20, 30, 40), strict=True)
}


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of a slice of `size` GPUs of `memory_total` bytes, `share` of which vLLM may use.

    `max_length` is in tokens: None for the model's own, AUTO for what fits. The other options are those
    of vLLM, None where not given. `asked` holds those of WATCHED that were given. `most_gpus` are the GPUs
    that a worker could have here at most.
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


@dataclass(frozen=True, slots=True)
class Term:
    """One thing a GPU must hold: the estimate, the least it can be, and how they were come to."""

    name: str
    bytes: int
    least: int
    how: str


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
    def certain(self) -> bool:
        return not self.doubts and not self.unknowns

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


def estimate(config: ModelConfig, demand: Demand) -> Fit:
    """Weigh what one GPU must hold, and look for a way out if that is too much."""
    fit = _weigh(config, demand)
    return fit if fit.verdict == "fits" else replace(fit, way_out=_way_out(config, demand))


def longest_context(config: ModelConfig, demand: Demand) -> int | None:
    """Give the longest `--max-model-len` that fits, in tokens, up to what was asked or the model has.

    A whole number of blocks, unless it is all of that; 0 where not even one block fits; None where the
    files do not tell enough.
    """
    asked = demand.max_length if demand.max_length is not None and demand.max_length > 0 else None
    most = asked or config.max_length
    if most is None or config.weight_bytes is None or _kv_term(config, demand, most) is None:
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
    bits = _kv_bits(config, demand)
    each = None if bits is None else kv_bytes_per_token(config, demand.size, bits)
    if not each or config.weight_bytes is None:
        return None
    fit = _weigh(config, demand)
    room = demand.kv_cache_bytes
    if room is None:
        room = fit.budget - sum(term.bytes for term in fit.terms if term is not fit.kv_cache)
    return max(0, room // (each * BLOCK)) * BLOCK


def kv_bytes_per_token(config: ModelConfig, size: int, bits: int = 16) -> int | None:
    """Give what one token takes in the KV cache of each of `size` GPUs, all layers together.

    AttentionSpec and MLAAttentionSpec of vllm/v1/kv_cache_interface.py. Layers with a window keep only
    the last tokens, which is not counted here.
    """
    per_layer = _kv_elements(config, size)
    if per_layer is None or config.cached_layers is None:
        return None
    return config.cached_layers * per_layer * bits // 8


def parse_length(text: str) -> int:
    """Read `--max-model-len` in tokens as vLLM does ("8k", "32K", "auto"), AUTO for -1 and "auto".

    vllm/utils/argparse_utils.py, human_readable_int_or_auto. Raises `UsageError`.
    """
    if text.strip() == "-1" or text.strip().lower() == "auto":
        return AUTO
    return parse_number(text, "--max-model-len")


def parse_number(text: str, option: str) -> int:
    """Read a number above 0 as vLLM does: 8k is 8000, 8K is 8192, 1.5M is no number, 1.5m is.

    vllm/utils/argparse_utils.py, human_readable_int. Raises `UsageError`.
    """
    try:
        number = _human_number(text.strip())
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text!r} is not a number: write it like 8192, 8k (8000) or 8K (8192); "
            "only a small letter takes a fraction"
        ) from None
    if number < 1:
        raise UsageError(f"{option} {text!r} must be above 0")
    return number


def _human_number(text: str) -> int:
    match = _NUMBER.fullmatch(text)
    if match is None:
        return int(text)
    number, letter = match.groups()
    return int(float(number) * _SCALES[letter]) if letter.islower() else int(number) * _SCALES[letter]


# How the terms are come to.


def _weigh(config: ModelConfig, demand: Demand) -> Fit:
    length = _length(config, demand)
    weights = _weights_term(config, demand)
    kv_cache = None if length is None else _kv_term(config, demand, length)
    rest = _rest_term(demand)
    held, budget, budget_how = kv_cache, int(demand.memory_total * demand.share), _share_how(demand)
    if demand.kv_cache_bytes is not None:
        # Then vLLM does not heed the share (gpu_worker.py, determine_available_memory).
        fixed = demand.kv_cache_bytes
        held = Term("KV cache", fixed, fixed, "the KV cache that --kv-cache-memory-bytes asks for")
        budget, budget_how = demand.memory_total, "all of it, for --kv-cache-memory-bytes"
    return Fit(
        size=demand.size,
        terms=tuple(term for term in (weights, held, rest) if term is not None),
        budget=budget,
        budget_how=budget_how,
        doubts=_doubts(config, demand),
        unknowns=_unknowns(config, demand, weights, kv_cache),
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


def _weights_term(config: ModelConfig, demand: Demand) -> Term | None:
    """Share the files among the GPUs: norms, small matrices and rounding make it more, nothing less."""
    stored = config.weight_bytes
    if stored is None:
        return None
    wide, widest = _wide_bytes(config, stored)
    if _is_wide(demand.dtype):
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
    how = "the weights" if demand.size == 1 else f"its {_ordinal(demand.size)} of the weights"
    if config.in_parts:
        least = least * _LEAST_OF_PARTS // 100
        how += ", parts of which vLLM may not load"
    return Term("weights", -(-loaded // demand.size), -(-least // demand.size), how)


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


def _is_wide(dtype: str | None) -> bool:
    return (dtype or "").lower() in _BITS_32


def _kv_term(config: ModelConfig, demand: Demand, length: int) -> Term | None:
    """Give the KV cache of one request of `length` tokens, None where the files do not tell."""
    bits = _kv_bits(config, demand)
    elements = _kv_elements(config, demand.size)
    layers = config.cached_layers
    if bits is None or elements is None or layers is None:
        return None
    windowed = 0 if _WHOLE_WINDOWS in demand.asked else min(config.windowed_layers, layers)
    window = config.window or length
    least = (layers - windowed) * length + windowed * min(window, length)
    tokens = _allotted_tokens(layers - windowed, windowed, window, length, _in_flight(demand))
    what = "a request" if demand.max_length == AUTO else f"a request of {length} tokens"
    how = f"the KV cache of {what}"
    return Term("KV cache", tokens * elements * bits // 8, least * elements * bits // 8, how)


def _kv_elements(config: ModelConfig, size: int) -> int | None:
    """Give the elements that one layer keeps of a token on one GPU."""
    if config.mla_latent is not None:
        return config.mla_latent
    heads = kv_heads_per_gpu(config, size)
    return None if heads is None or config.head_size is None else 2 * heads * config.head_size


def _kv_bits(config: ModelConfig, demand: Demand) -> int | None:
    """Resolve `--kv-cache-dtype auto`: the checkpoint's own, else the model's.

    vllm/utils/torch_utils.py, resolve_kv_cache_dtype_string. A model in float32 is served in 16 bits
    (vllm/config/model.py, _resolve_auto_dtype).
    """
    asked = (demand.kv_cache_dtype or "auto").lower()
    if asked == "auto":
        asked = config.kv_dtype or ("float32" if _is_wide(demand.dtype) else "float16")
    return 32 if asked in _BITS_32 else _KV_BITS.get(asked)


def _allotted_tokens(full: int, windowed: int, window: int, length: int, in_flight: int) -> int:
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


def _in_flight(demand: Demand) -> int:
    """Give the tokens of the two batches that are under way at once.

    vllm/config/vllm.py, max_in_flight_tokens; vllm/engine/arg_utils.py, get_batch_defaults, for a
    server.
    """
    default = 16384 if demand.memory_total >= 160 * GIB else 8192 if demand.memory_total >= 70 * GIB else 2048
    return 2 * (demand.batched_tokens or default)


def _rest_term(demand: Demand) -> Term:
    """Guess what is neither weights nor cache; it depends on kernels and is measured by vLLM's trial run.

    Start-up logs of vLLM show 0.4 to 1.4 GiB of activations, 0.1 to 0.7 GiB outside of torch (more with
    NCCL, between GPUs) and 0.3 to 0.5 GiB of CUDA graphs; all of it less on small GPUs.
    """
    alone = min(2 * GIB, demand.memory_total // 10)
    between = min(GIB // 2, demand.memory_total // 40) if demand.size > 1 else 0
    return Term("the rest", alone + between, 0, "activations, CUDA graphs and CUDA itself")


def _doubts(config: ModelConfig, demand: Demand) -> tuple[str, ...]:
    doubts = [why for name, why in _LOOSENS.items() if name in demand.asked]
    if "--quantization" in demand.asked and config.quantization is None:
        doubts.insert(0, _CONVERTS)
    return tuple(doubts)


def _unknowns(
    config: ModelConfig, demand: Demand, weights: Term | None, kv_cache: Term | None
) -> tuple[str, ...]:
    unknowns = list(dict.fromkeys(why for name, why in _ADDS.items() if name in demand.asked))
    if weights is None:
        unknowns.append("the size of the weights is not known")
    if kv_cache is None and config.hybrid:
        unknowns.append("the memory of the layers that are not attention is not counted")
    elif kv_cache is None:
        unknowns.append("the KV cache is not known")
    return tuple(unknowns)


# The way out.


def _way_out(config: ModelConfig, demand: Demand) -> str:
    """Name the options that would make it fit, the shorter context only where it is of use."""
    ways: list[str] = []
    if (size := _size_that_fits(config, demand, demand.size + 1)) is not None:
        ways.append(f"--tensor-parallel-size {size}")
    if demand.share < DEFAULT_SHARE and demand.kv_cache_bytes is None:
        larger = replace(demand, share=DEFAULT_SHARE)
        if _weigh(config, larger).verdict == "fits":
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
        if divides(config, size) and _weigh(config, replace(demand, size=size)).verdict == "fits":
            return size
    return None


def _useful(config: ModelConfig) -> int:
    return min(1024, config.max_length or 1024)


def _fits_with(config: ModelConfig, demand: Demand, length: int) -> bool:
    return _weigh(config, replace(demand, max_length=length)).verdict == "fits"
