"""What the options ask of the GPUs of one worker."""

from __future__ import annotations

import os

from vllm_stack.model.fit import WATCHED, Demand, parse_length, parse_number
from vllm_stack.options import Options
from vllm_stack.vllm_arguments import needed_share, value_of

# These values are what vLLM does anyway.
_NOTHING_NEW = {
    ("--load-format", "auto"),
    ("--load-format", "safetensors"),
    ("--decode-context-parallel-size", "1"),
}
# Other names of the same options (vllm/engine/arg_utils.py).
_SHORT = {"--quantization": "-q", "--decode-context-parallel-size": "-dcp", "--speculative-config": "-sc"}


def demand_of(options: Options, memory_total: int) -> Demand:
    """Read from vLLM's options what is asked of GPUs of `memory_total` bytes.

    Raises `UsageError` for a number that vLLM could not read either.
    """
    args = options.vllm_args
    length = value_of(args, "--max-model-len")
    batched = value_of(args, "--max-num-batched-tokens")
    fixed = value_of(args, "--kv-cache-memory-bytes")
    options_asked = {name for name in WATCHED if name.startswith("--") and _is_asked(args, name)}
    variables = {name for name in WATCHED if os.environ.get(name)}
    return Demand(
        size=options.tensor_parallel_size,
        memory_total=memory_total,
        share=needed_share(args),
        max_length=None if length is None else parse_length(length),
        kv_cache_dtype=value_of(args, "--kv-cache-dtype"),
        kv_cache_bytes=None if fixed is None else parse_number(fixed, "--kv-cache-memory-bytes"),
        dtype=value_of(args, "--dtype"),
        batched_tokens=None if batched is None else parse_number(batched, "--max-num-batched-tokens"),
        asked=frozenset(options_asked | variables),
    )


def _is_asked(args: tuple[str, ...], name: str) -> bool:
    value = value_of(args, name, *((_SHORT[name],) if name in _SHORT else ()))
    return value is not None and (name, value) not in _NOTHING_NEW
