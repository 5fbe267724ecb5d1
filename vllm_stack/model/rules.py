"""What vLLM refuses of a model by its config alone, and what it does otherwise than asked."""

from __future__ import annotations

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.config_facts import DTYPES

# vllm/model_executor/layers/quantization: get_min_capability of the class that __init__.py,
# get_quantization_config, gives to the method. fp8, AWQ and NVFP4 start at 7.5 since Marlin takes them
# where the GPU has no instructions for them.
_ONLINE = 75
_CAPABILITIES = {
    "auto_awq": 75,
    "auto_gptq": 60,
    "awq": 75,
    "awq_marlin": 75,
    "compressed-tensors": 70,
    "deepseek_v4_fp8": 75,
    "experts_int8": 80,
    "fbgemm_fp8": 80,
    "fp8": 75,
    "fp8_per_block": _ONLINE,
    "fp8_per_channel": _ONLINE,
    "fp8_per_tensor": _ONLINE,
    "fp_quant": 100,
    "gpt_oss_mxfp4": 80,
    "gptq": 60,
    "gptq_marlin": 60,
    "humming": 75,
    "inc": 60,
    "int8_per_channel_weight_only": _ONLINE,
    "modelopt": 80,
    "modelopt_fp4": 75,
    "modelopt_mixed": 75,
    "modelopt_mxfp8": 80,
    "moe_wna16": 70,
    "mxfp4": 80,
    "mxfp8": 80,
    "nvfp4_per_token": _ONLINE,
    "online": _ONLINE,
    "quark": 70,
    "torchao": 75,
}
# vllm/config/model.py, _FLOAT16_NOT_SUPPORTED_MODELS.
_NOT_IN_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
_BFLOAT16_FROM = (8, 0)
# get_supported_act_dtypes of the same classes: these compute in bfloat16 alone, those in float32 too.
_IN_BFLOAT16 = frozenset({"fp_quant", "gpt_oss_mxfp4", "modelopt_mxfp8", "mxfp4", "mxfp8"})
_IN_FLOAT32 = frozenset({"compressed-tensors", "torchao"})


def heads_refusal(config: ModelConfig, size: int) -> str | None:
    """Say why vLLM refuses to split the attention heads over `size` GPUs, and what it takes.

    vllm/config/model.py, verify_with_parallel_config, for the heads; QKVParallelLinear of
    vllm/model_executor/layers/linear.py for the KV heads, which are split evenly or held evenly often.
    """
    heads, kv = config.attention_heads, _split_kv_heads(config)
    if heads is None or splits(config, size):
        return None
    sizes = ", ".join(str(n) for n in range(1, min(heads, 64) + 1) if splits(config, n))
    what = f"{heads} attention heads" if heads % size else f"{kv} KV heads"
    return f"The model has {what}, which --tensor-parallel-size {size} does not divide: use one of {sizes}"


def splits(config: ModelConfig, size: int) -> bool:
    """Tell whether `size` GPUs can share the heads; True where their number is not known."""
    heads, kv = config.attention_heads, _split_kv_heads(config)
    if heads is not None and heads % size:
        return False
    return kv is None or size % kv == 0 or kv % size == 0


def divides(config: ModelConfig, size: int) -> bool:
    """Tell whether `size` GPUs can share the heads, and the other layers whose width is known."""
    return splits(config, size) and not any(width % size for width in config.widths)


def _split_kv_heads(config: ModelConfig) -> int | None:
    return config.kv_heads if config.mla_latent is None else None


def kv_heads_per_gpu(config: ModelConfig, size: int) -> int | None:
    """Give the KV heads that each of `size` GPUs holds (vllm/config/model.py, get_num_kv_heads)."""
    if config.mla_latent is not None:
        return 1
    return None if config.kv_heads is None else max(1, config.kv_heads // size)


def kv_replication(config: ModelConfig, size: int) -> str | None:
    """Note that more GPUs than KV heads make no more room for the KV cache."""
    if config.mla_latent is not None:
        if size == 1:
            return None
        return (
            f"The KV cache is latent and each of the {size} GPUs holds it whole, so more of them make room "
            "by the weights alone"
        )
    if config.kv_heads is None or size <= config.kv_heads:
        return None
    heads = "1 KV head, which" if config.kv_heads == 1 else f"{config.kv_heads} KV heads, each of which"
    return (
        f"The model has {heads} is held by {size // config.kv_heads} GPUs, so from "
        f"--tensor-parallel-size {config.kv_heads} on the KV cache of a GPU becomes no smaller"
    )


def dtype_refusal(
    config: ModelConfig,
    dtype_option: str | None,
    capability: tuple[int, int] | None,
    gpu_name: str,
    quantization: str | None = None,
) -> str | None:
    """Say why vLLM refuses `--dtype` with this model on this GPU; `quantization` is that option's value.

    vllm/platforms/cuda.py, check_if_supports_dtype; vllm/config/model.py, _check_valid_dtype; for
    quantized models vllm/config/vllm.py, _get_quantization_config.
    """
    asked = DTYPES.get((dtype_option or "").lower())
    method = config.quantization or quantization
    # Asked for, this is a way to convert the weights (layers/quantization/online/base.py), no checkpoint.
    online = config.quantization is None and method == "mxfp8"
    judged = _computes_in("fp8" if online else method)
    able = [dtype for dtype in judged if _can_be(config, dtype, capability)]
    way_out = (
        f"use --dtype {able[0]}"
        if able
        else f"{gpu_name} cannot run this model, so use another GPU, or the model in another quantization"
    )
    if asked == "bfloat16" and capability is not None and capability < _BFLOAT16_FROM:
        return (
            f"--dtype {dtype_option} needs compute capability 8.0, and {gpu_name} has {_dotted(capability)}: "
            f"{way_out}"
        )
    if asked == "float16" and config.model_type in _NOT_IN_FLOAT16:
        return (
            f"--dtype {dtype_option} is not for {config.model_type}, whose numbers overflow in 16 bits of "
            f"that kind: {way_out}"
        )
    if asked in ("float16", "float32") and asked not in judged:
        return f"--dtype {dtype_option} is not for the quantization {method}: {way_out}"
    return None


def _computes_in(method: str | None) -> tuple[str, ...]:
    """Give the types that a quantization computes in, the best first; all for one that is not judged."""
    if method in _IN_BFLOAT16:
        return ("bfloat16",)
    if method in _CAPABILITIES and method not in _IN_FLOAT32:
        return ("bfloat16", "float16")
    return ("bfloat16", "float16", "float32")


def _can_be(config: ModelConfig, dtype: str, capability: tuple[int, int] | None) -> bool:
    if dtype == "float16":
        return config.model_type not in _NOT_IN_FLOAT16
    return dtype != "bfloat16" or capability is None or capability >= _BFLOAT16_FROM


def dtype_warning(
    config: ModelConfig, dtype_option: str | None, capability: tuple[int, int] | None, gpu_name: str
) -> str | None:
    """Note that vLLM takes another type than the model's (vllm/config/model.py, _resolve_auto_dtype)."""
    automatic = (dtype_option or "auto").lower() == "auto"
    if not automatic or config.dtype != "bfloat16" or capability is None or capability >= _BFLOAT16_FROM:
        return None
    instead = "float32, twice the size" if config.model_type in _NOT_IN_FLOAT16 else "float16"
    return (
        "The model is in bfloat16, which needs compute capability 8.0; "
        f"{gpu_name} has {_dotted(capability)}, so vLLM takes {instead}"
    )


def quantization_refusal(
    config: ModelConfig, capability: tuple[int, int] | None, gpu_name: str, option: str | None = None
) -> str | None:
    """Say why vLLM refuses the quantization on this GPU (vllm/config/vllm.py, _get_quantization_config).

    `option` is the value of `--quantization`. A method that is not in the table is not judged.
    """
    method = config.quantization or option
    least = _CAPABILITIES.get(method or "")
    if method == "mxfp8" and config.quantization is None:
        least = _ONLINE
    if least is None or capability is None or capability[0] * 10 + capability[1] >= least:
        return None
    return (
        f"The quantization {method} needs compute capability {least // 10}.{least % 10}, and {gpu_name} has "
        f"{_dotted(capability)}: use another GPU, or the model in another quantization"
    )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
