"""What the files and the options leave uncertain: a GPU may need less than was worked out, or more."""

from __future__ import annotations

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import WHOLE_WINDOWS, Demand
from vllm_stack.model.terms import Term

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
WATCHED = (*_LOOSENS, *_ADDS, WHOLE_WINDOWS, "--quantization")
"""The names `Demand.asked` may hold."""


def doubts_of(config: ModelConfig, demand: Demand) -> tuple[str, ...]:
    """Say why it may need less than the least that was worked out."""
    doubts = [why for name, why in _LOOSENS.items() if name in demand.asked]
    if "--quantization" in demand.asked and config.quantization is None:
        doubts.insert(0, _CONVERTS)
    return tuple(doubts)


def unknowns_of(
    config: ModelConfig, demand: Demand, weights: Term | None, kv_cache: Term | None
) -> tuple[str, ...]:
    """Say what is not in the sum."""
    unknowns = list(dict.fromkeys(why for name, why in _ADDS.items() if name in demand.asked))
    if weights is None:
        unknowns.append("the size of the weights is not known")
    if kv_cache is None and config.hybrid:
        unknowns.append("the memory of the layers that are not attention is not counted")
    elif kv_cache is None:
        unknowns.append("the KV cache is not known")
    return tuple(unknowns)
