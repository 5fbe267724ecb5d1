"""What the options ask of the GPUs of one worker."""

from __future__ import annotations

import os

from vllm_stack.errors import UsageError
from vllm_stack.model.demand import LARGEST_SIZE, Demand
from vllm_stack.model.doubts import WATCHED
from vllm_stack.options import Options
from vllm_stack.vllm_arguments import needed_share, parse_length, parse_number, value_of

# These values are what vLLM does anyway.
_NOTHING_NEW = {
    ("--load-format", "auto"),
    ("--load-format", "safetensors"),
    ("--load-format", "hf"),
    ("--decode-context-parallel-size", "1"),
    ("--runner", "auto"),
    ("--runner", "generate"),
    ("--cpu-offload-gb", "0"),
    ("--hf-overrides", "{}"),
}
# Other names of the same options (vllm/engine/arg_utils.py).
_SHORT = {"--quantization": "-q", "--decode-context-parallel-size": "-dcp", "--speculative-config": "-sc"}


def demand_of(options: Options, memory_total: int, most_gpus: int = LARGEST_SIZE) -> Demand:
    """Read from vLLM's options what is asked of GPUs of `memory_total` bytes.

    `most_gpus` is how many of them one worker could have here.

    Raises `UsageError` for a number that vLLM could not read either.
    """
    args = options.vllm_args
    share = needed_share(args)
    if not share:
        given = value_of(args, "--gpu-memory-utilization", "--device-memory-utilization")
        raise UsageError(f"--gpu-memory-utilization {given!r} is no share: give one above 0 and up to 1")
    length = value_of(args, "--max-model-len")
    batched = value_of(args, "--max-num-batched-tokens")
    fixed = value_of(args, "--kv-cache-memory-bytes")
    options_asked = {name for name in WATCHED if name.startswith("--") and _is_asked(args, name)}
    variables = {name for name in WATCHED if os.environ.get(name, "").lower() in ("1", "true")}
    return Demand(
        size=options.tensor_parallel_size,
        stages=options.pipeline_parallel_size,
        memory_total=memory_total,
        share=share,
        most_gpus=most_gpus,
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


def config_is_overridden(args: tuple[str, ...]) -> bool:
    """Tell whether vLLM is given other facts than the model's own config has."""
    whole = any(value_of(args, name) not in (None, "{}") for name in ("--hf-overrides", "--hf-config-path"))
    return whole or any(word.startswith(("--hf-overrides.", "--hf_overrides.")) for word in args)
