"""What a model's config.json says of it, as a value.

The rules are those of vLLM 0.32.0. A file that says nothing, or nonsense, makes the fact None and never
raises: what is not known is not refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_stack.model.config_facts import (
    ATTENTION,
    DEFAULTS,
    DTYPES,
    FALCONS,
    HEAD_SIZES,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    LENGTHS,
    MARKS_OF_PARTS,
    MIXERS,
    MLA,
    NO_MODELS,
    ONE_KV_HEAD_EACH,
    PATTERNS,
    SCALED,
    TEXT_CONFIGS,
    UNEVEN,
    VOCABULARY_STEP,
    WIDTHS,
    WRITERS,
)

_DEEPEST = 4
_LARGEST = 2**50


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The facts of a config.json that decide what vLLM does with it; None is "not told".

    `max_length` and `window` are in tokens, `weight_bytes` in bytes; `wide_bytes` are those of them that
    are kept in 32 bits or more. `window` holds for `windowed_layers` of the `cached_layers`, which are the
    layers that keep a KV cache of their own, all of the same kind; `cached_layers` is None where they are
    not, and the cache cannot be told. `mla_latent` is the size of what multi-head latent attention keeps
    of a token. `kv_dtype` is the type of the KV cache that the checkpoint asks for. `draft_layers` are in
    the files, and loaded for speculative decoding only. `hybrid` models have layers that are not
    attention. `in_parts` are those made of several models (vision, speech), of which vLLM may leave some in
    the files. `widths` are sizes of layers that a number of GPUs must divide.
    """

    architecture: str | None = None
    model_type: str | None = None
    attention_heads: int | None = None
    kv_heads: int | None = None
    head_size: int | None = None
    layers: int | None = None
    max_length: int | None = None
    dtype: str | None = None
    quantization: str | None = None
    kv_dtype: str | None = None
    mla_latent: int | None = None
    window: int | None = None
    windowed_layers: int = 0
    cached_layers: int | None = None
    draft_layers: int = 0
    hybrid: bool = False
    in_parts: bool = False
    widths: tuple[int, ...] = ()
    weight_bytes: int | None = None
    wide_bytes: int | None = None


def parse_config(raw: object, quantization: object = None) -> ModelConfig:
    """Read what a config.json says (already parsed as JSON), in the text part of a multimodal one first.

    `quantization` is the content of hf_quant_config.json, where ModelOpt keeps what config.json does not
    tell (vllm/transformers_utils/config.py, get_config). The rules are those of
    vllm/transformers_utils/model_arch_config_convertor.py.
    """
    config = raw if isinstance(raw, dict) else {}
    text = _text_part(config, _DEEPEST)
    kind = _word(text.get("model_type"))
    heads = _find(text, HEADS)
    layers = _find(text, LAYERS)
    quantized = _quantization(config, text, quantization)
    method = _method(quantized)
    hybrid = _is_hybrid(text)
    latent = _latent(text, kind)
    cached = None if hybrid else _cached_layers(config, text, layers, latent)
    window, windowed = _windows(text, kind, cached or layers or 0)
    return ModelConfig(
        architecture=_architecture(config),
        model_type=_word(config.get("model_type")) or kind,
        attention_heads=heads,
        kv_heads=_kv_heads(text, kind, heads),
        head_size=_head_size(text, heads),
        layers=layers,
        max_length=_max_length(text, kind),
        dtype=_dtype(config, text),
        quantization=method,
        kv_dtype=_kv_dtype(text, quantized, method),
        mla_latent=latent,
        window=window,
        windowed_layers=windowed,
        cached_layers=cached,
        draft_layers=_find(text, ("num_nextn_predict_layers", "mtp_num_hidden_layers")) or 0,
        hybrid=hybrid,
        in_parts=_is_in_parts(config),
        widths=_widths(text),
    )


def _text_part(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Give the part that describes the language model, with the defaults of its class filled in."""
    for name in TEXT_CONFIGS:
        nested = config.get(name)
        if isinstance(nested, dict) and depth:
            part = _text_part(nested, depth - 1)
            if _find(part, HEADS) is not None:
                return part
    defaults = DEFAULTS.get(_word(config.get("model_type")) or "", {})
    given = {name: value for name, value in config.items() if value is not None}
    # KV heads under another name must not meet the default of this one.
    if any(name in given for name in KV_HEADS):
        defaults = {name: value for name, value in defaults.items() if name not in KV_HEADS}
    return {**defaults, **given}


def as_count(value: object) -> int | None:
    """Take a count: a whole number above 0 that a model can have."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    plausible = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
    return value if plausible and isinstance(value, int) else None


def _word(value: object) -> str | None:
    """Take a text that can be written out: JSON may hold halves of characters, which no file takes."""
    if not isinstance(value, str):
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return None
    return value or None


def _find(config: Mapping[str, Any], names: Sequence[str]) -> int | None:
    """Take the first of `names` that is given; what it holds is a count or nothing."""
    for name in names:
        if config.get(name) is not None:
            return as_count(config[name])
    return None


def _architecture(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return _word(names[0]) if isinstance(names, list) and names else None


def _is_in_parts(config: Mapping[str, Any]) -> bool:
    """Tell whether the language model is one of several in the files.

    vLLM drops some of them, like the talker of Qwen2.5-Omni and the tts of MiniCPM-o: hf_to_vllm_mapper of
    vllm/model_executor/models, where a prefix is mapped to None.
    """
    parts = (name for name, value in config.items() if name.endswith("_config") and isinstance(value, dict))
    return any(name not in NO_MODELS for name in parts) or any(name in config for name in MARKS_OF_PARTS)


def _widths(text: Mapping[str, Any]) -> tuple[int, ...]:
    """Give the sizes that vLLM splits evenly: of the layers between, and the vocabulary as it is filled up.

    ColumnParallelLinear of vllm/model_executor/layers/linear.py, FusedMoEConfig of
    fused_moe/config.py, VocabParallelEmbedding of vocab_parallel_embedding.py.
    """
    widths = [width for name in WIDTHS if (width := as_count(text.get(name))) is not None]
    if (vocabulary := as_count(text.get("vocab_size"))) is not None:
        widths.append(-(-vocabulary // VOCABULARY_STEP) * VOCABULARY_STEP)
    return tuple(widths)


def _kv_heads(text: Mapping[str, Any], kind: str | None, heads: int | None) -> int | None:
    nested = text.get("attn_config")
    if kind in FALCONS and text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    if kind == "gpt_bigcode" and text.get("multi_query", True) is True:
        return 1
    if any(text.get(name) is not None for name in KV_HEADS):
        return _find(text, KV_HEADS)
    if isinstance(nested, dict) and nested.get("kv_n_heads") is not None:
        return as_count(nested["kv_n_heads"])
    return heads if kind in ONE_KV_HEAD_EACH or kind in FALCONS else None


def _head_size(text: Mapping[str, Any], heads: int | None) -> int | None:
    given = _find(text, HEAD_SIZES)
    hidden = _find(text, HIDDEN)
    if given is not None or heads is None or hidden is None:
        return given
    return hidden // heads or None


def _latent(text: Mapping[str, Any], kind: str | None) -> int | None:
    rank, rope = as_count(text.get("kv_lora_rank")), as_count(text.get("qk_rope_head_dim"))
    return rank + rope if kind in MLA and rank and rope and "compress_ratios" not in text else None


def _is_hybrid(text: Mapping[str, Any]) -> bool:
    """Tell whether there are layers that are not attention, as vLLM's ModelConfig.is_hybrid does."""
    for name in ("layer_types", "layers_block_type"):
        kinds = text.get(name)
        if isinstance(kinds, list) and kinds:
            return not all(isinstance(kind, str) and kind in ATTENTION for kind in kinds)
    kinds = text.get("attn_type_list")
    if isinstance(kinds, list) and any(kind != 1 for kind in kinds):
        return True
    return any(text.get(name) is not None for name in MIXERS)


def _cached_layers(
    config: Mapping[str, Any], text: Mapping[str, Any], layers: int | None, latent: int | None
) -> int | None:
    uneven = any(text.get(name) is not None for name in UNEVEN)
    # A value head of another size, or a latent that vLLM keeps spelled out.
    other = latent is None and any(text.get(name) is not None for name in ("v_head_dim", "kv_lora_rank"))
    encodes = bool(config.get("is_encoder_decoder") or text.get("is_encoder_decoder"))
    writes = (_architecture(config) or "").endswith(WRITERS)
    if layers is None or uneven or other or encodes or not writes:
        return None
    if text.get("num_kv_shared_layers") in (None, 0):
        return layers
    shared = as_count(text["num_kv_shared_layers"])
    return layers - shared if shared is not None and shared < layers else None


def _windows(text: Mapping[str, Any], kind: str | None, layers: int) -> tuple[int | None, int]:
    """Give the sliding window and how many of the first `layers` layers have it.

    Chunked attention (Llama 4) keeps the whole cache: vLLM has its saving switched off unless
    VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE is set (vllm/config/vllm.py). Without a pattern
    the window is that of every layer (vllm/engine/arg_utils.py, create_engine_config).
    """
    window = as_count(text.get("sliding_window"))
    kinds = text.get("layer_types")
    # Qwen's classes have it switched off by default.
    switched = text.get("use_sliding_window", not (kind or "").startswith("qwen"))
    if window is None or switched is False:
        return None, 0
    if isinstance(kinds, list) and kinds:
        count = kinds[:layers].count("sliding_attention")
    elif text.get("use_sliding_window") is True and as_count(text.get("max_window_layers")) is not None:
        count = max(0, layers - int(text["max_window_layers"]))
    else:
        count = layers - _layers_that_see_all(text, kind, layers)
    return (window, count) if count else (None, 0)


def _layers_that_see_all(text: Mapping[str, Any], kind: str | None, layers: int) -> int:
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if isinstance(pattern, str):
        return layers // len(pattern) * (len(pattern) - pattern.count("L"))
    every = as_count(pattern) or PATTERNS.get(kind or "")
    return layers // every if every else 0


def _max_length(text: Mapping[str, Any], kind: str | None) -> int | None:
    """Derive the longest sequence, in tokens (vllm/config/model.py, _get_and_verify_max_len)."""
    given = [text[name] for name in LENGTHS if text.get(name) is not None]
    lengths = [length for length in map(as_count, given) if length is not None]
    if not lengths or len(lengths) != len(given):
        return None
    length = as_count(text.get("model_max_length")) or min(lengths)
    ropes = _ropes(text)
    if ropes is None:
        return None
    if any(_rope_type(rope) in ("longrope", "su") for rope in ropes):
        original = text.get("original_max_position_embeddings")
        return length if original is None else as_count(original)
    if "gemma3" in (kind or ""):
        return length
    factor: object = 1.0
    for rope in ropes:
        if _rope_type(rope) not in SCALED:
            factor = rope.get("factor", factor)
    if factor is None:
        factor = 1.0
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor <= _LARGEST:
        return None
    return as_count(int(length * factor))


def _ropes(text: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Give the parameters of rope, one for each kind of layer where they differ."""
    scaling = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        return None
    nested = [part for part in scaling.values() if isinstance(part, dict) and part]
    return nested or ([scaling] if scaling else [])


def _rope_type(rope: Mapping[str, Any]) -> str | None:
    return _word(rope.get("rope_type")) or _word(rope.get("type"))


def _dtype(config: Mapping[str, Any], text: Mapping[str, Any]) -> str | None:
    for part in (config, text, config.get("vision_config"), config.get("encoder_config")):
        if not isinstance(part, dict):
            continue
        for name in ("dtype", "torch_dtype"):
            if (word := _word(part.get(name))) is not None:
                return DTYPES.get(word.removeprefix("torch."))
    return None


def _quantization(config: Mapping[str, Any], text: Mapping[str, Any], beside: object) -> dict[str, Any]:
    for value in (config.get("quantization_config"), config.get("compression_config"), beside):
        if isinstance(value, dict) and value:
            return value
    for name in ("quantization_config", "compression_config"):
        value = text.get(name)
        if isinstance(value, dict) and value:
            return value
    return {}


def _method(quantized: Mapping[str, Any]) -> str | None:
    """Name the method as vLLM does (_normalize_quantization_config)."""
    inner = quantized.get("quantization")
    producer = quantized.get("producer")
    by_modelopt = isinstance(producer, dict) and producer.get("name") == "modelopt"
    algorithm = (_word(inner.get("quant_algo")) or "").upper() if isinstance(inner, dict) else ""
    if by_modelopt and algorithm:
        return {"NVFP4": "modelopt_fp4"}.get(algorithm) or ("modelopt" if "FP8" in algorithm else None)
    method = (_word(quantized.get("quant_method")) or "").lower()
    return method.replace("compressed_tensors", "compressed-tensors") or None


def _kv_dtype(text: Mapping[str, Any], quantized: Mapping[str, Any], method: str | None) -> str | None:
    """Give the type of the KV cache that the checkpoint asks for.

    vllm/utils/torch_utils.py, get_kv_cache_quant_algo_string; Attention.__init__ for `kv_cache_scheme`;
    sparse latent attention (`index_topk`) takes fp8 on some GPUs (vllm/model_executor/models/config.py).
    """
    inner = quantized.get("quantization")
    for part in (inner, quantized):
        if not isinstance(part, dict):
            continue
        scheme = part.get("kv_cache_scheme") or part.get("kv_cache_quant_algo")
        if isinstance(scheme, dict):
            return "nvfp4" if scheme.get("num_bits") == 4 else "fp8"
        if isinstance(scheme, str):
            return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(scheme.lower())
    return "fp8" if text.get("index_topk") is not None else None
