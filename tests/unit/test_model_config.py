"""What a model's files say, and vLLM's rules that follow from it; the configs are those of real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_stack.model.config import ModelConfig, parse_config
from vllm_stack.model.rules import (
    dtype_refusal,
    dtype_warning,
    heads_refusal,
    kv_heads_per_gpu,
    kv_replication,
    quantization_refusal,
)
from vllm_stack.model.weights import read_weights, read_wide_bytes, with_weights

CONFIGS = Path(__file__).parent / "configs"
T4, A100, H100 = ((7, 5), "Tesla T4"), ((8, 0), "A100"), ((9, 0), "H100")


def config(name: str) -> ModelConfig:
    return parse_config(json.loads((CONFIGS / f"{name}.json").read_text("utf-8")))


@pytest.mark.parametrize(
    ("name", "heads", "kv_heads", "head_size", "layers", "max_length"),
    [
        ("llama-3.1-8b", 32, 8, 128, 32, 131072),
        ("llama-3.1-70b", 64, 8, 128, 80, 131072),
        ("qwen3-8b", 32, 8, 128, 36, 40960),
        ("qwen2.5-72b", 64, 8, 128, 80, 32768),
        ("mixtral-8x7b", 32, 8, 128, 32, 32768),
        ("deepseek-v3", 128, 128, 56, 61, 163840),
        ("gemma-3-27b", 32, 16, 128, 62, 131072),
        ("gpt-oss-20b", 64, 8, 64, 24, 131072),
        ("gpt-oss-120b", 64, 8, 64, 36, 131072),
        ("smollm2-135m", 9, 3, 64, 30, 8192),
        ("qwen3-next-80b", 16, 2, 256, 48, 262144),
    ],
)
def test_the_shape_of_a_model_is_what_vllm_makes_of_its_config(
    name: str, heads: int, kv_heads: int, head_size: int, layers: int, max_length: int
) -> None:
    found = config(name)
    assert (found.attention_heads, found.kv_heads, found.head_size) == (heads, kv_heads, head_size)
    assert (found.layers, found.max_length) == (layers, max_length)


def test_latent_attention_is_told_by_its_rank_and_its_rope_part() -> None:
    assert config("deepseek-v3").mla_latent == 512 + 64
    assert config("llama-3.1-8b").mla_latent is None
    # MiniCPM3 has a rank, too, and vLLM spells its keys and values out: then the cache is not told.
    other = parse_config({"architectures": ["MiniCPM3ForCausalLM"], "kv_lora_rank": 256, "num_layers": 4})
    assert (other.mla_latent, other.cached_layers) == (None, None)


@pytest.mark.parametrize(
    ("name", "window", "layers"),
    [
        ("gemma-3-27b", 1024, 52),
        ("gpt-oss-20b", 128, 12),
        ("gpt-oss-120b", 128, 18),
        ("qwen2.5-72b", None, 0),
        ("qwen3-8b", None, 0),
        ("mixtral-8x7b", None, 0),
    ],
)
def test_layers_with_a_window_are_counted(name: str, window: int | None, layers: int) -> None:
    assert (config(name).window, config(name).windowed_layers) == (window, layers)


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"model_type": "mistral"}, 12),
        ({"model_type": "gemma2"}, 6),
        ({"model_type": "cohere2"}, 9),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLLG"}, 9),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 8}, 4),
        ({"model_type": "qwen2", "use_sliding_window": False}, 0),
        ({"model_type": "qwen2"}, 0),
        ({"model_type": "x", "layer_types": ["full_attention"] * 12}, 0),
        ({"model_type": "x", "layer_types": ["sliding_attention"] * 5 + ["full_attention"] * 7}, 5),
    ],
)
def test_a_family_has_its_own_rule_for_the_window(fields: dict[str, Any], layers: int) -> None:
    found = parse_config({"num_hidden_layers": 12, "sliding_window": 512, **fields})
    assert found.windowed_layers == layers
    assert found.window == (512 if layers else None)


def test_layers_that_share_the_cache_of_others_have_none() -> None:
    kinds = ["sliding_attention", "full_attention"] * 4
    raw = {"architectures": ["XForCausalLM"], "num_hidden_layers": 8, "layer_types": kinds}
    found = parse_config({**raw, "sliding_window": 512, "num_kv_shared_layers": 3})
    assert (found.cached_layers, found.windowed_layers) == (5, 3)


@pytest.mark.parametrize(
    "raw",
    [
        json.loads((CONFIGS / "qwen3-next-80b.json").read_text("utf-8")),
        {"model_type": "jamba", "attn_layer_period": 8, "num_hidden_layers": 32},
        {"layers_block_type": ["mamba", "attention"]},
        {"attn_type_list": [0, 0, 1]},
        {"layer_types": ["linear_attention", "full_attention"]},
    ],
)
def test_layers_that_are_not_attention_make_a_hybrid_without_a_known_cache(raw: dict[str, Any]) -> None:
    found = parse_config({"architectures": ["XForCausalLM"], **raw})
    assert found.hybrid
    assert found.cached_layers is None


def test_a_hybrid_class_with_attention_alone_is_none() -> None:
    assert not parse_config({"layer_types": ["attention"] * 4, "mamba_d_state": 16}).hybrid


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["BertModel"]},
        {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
        {"block_configs": [{}]},
        {"global_head_dim": 512},
        {"v_head_dim": 64},
        {"architectures": None},
    ],
)
def test_a_cache_that_differs_by_layer_or_is_none_is_not_told(fields: dict[str, Any]) -> None:
    raw = {"architectures": ["XForCausalLM"], "num_hidden_layers": 4}
    assert parse_config(raw).cached_layers == 4
    assert parse_config({**raw, **fields}).cached_layers is None


@pytest.mark.parametrize("name", ["text_config", "llm_config", "language_config"])
def test_the_text_part_is_read_first(name: str) -> None:
    raw = {name: {"num_attention_heads": 16, "dtype": "float16"}, "num_attention_heads": 3}
    assert parse_config(raw).attention_heads == 16
    assert parse_config(raw).dtype == "float16"


def test_a_thinker_nests_its_text_part() -> None:
    raw = {"thinker_config": {"audio_config": {"num_heads": 5}, "text_config": {"num_attention_heads": 28}}}
    assert parse_config(raw).attention_heads == 28


def test_a_part_without_heads_is_passed_over() -> None:
    assert parse_config({"num_attention_heads": 5, "text_config": {"hidden_size": 8}}).attention_heads == 5


def test_fields_that_gemma_leaves_to_its_class_are_known() -> None:
    found = parse_config({"text_config": {"model_type": "gemma3_text", "num_hidden_layers": 34}})
    assert (found.attention_heads, found.kv_heads, found.head_size) == (8, 4, 256)


@pytest.mark.parametrize(
    ("fields", "kv_heads"),
    [
        ({"model_type": "llama"}, 32),
        ({"model_type": "unheard_of"}, None),
        ({"model_type": "mistral"}, 8),
        ({"model_type": "falcon", "multi_query": True}, 1),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 8}, 8),
        ({"model_type": "gpt_bigcode"}, 1),
        ({"model_type": "dbrx", "attn_config": {"kv_n_heads": 4}}, 4),
        ({"model_type": "chatglm", "multi_query_group_num": 2}, 2),
        ({"model_type": "llama", "num_key_value_heads": [1, 2]}, None),
    ],
)
def test_kv_heads_are_found_where_families_put_them(fields: dict[str, Any], kv_heads: int | None) -> None:
    assert parse_config({"num_attention_heads": 32, **fields}).kv_heads == kv_heads


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2.5}}, 10240),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": None}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": "four"}}, None),
        ({"max_position_embeddings": 4096, "rope_scaling": "linear"}, None),
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope", "long_factor": [1.0]},
            },
            4096,
        ),
        ({"max_position_embeddings": 4096, "rope_parameters": {"full": {"factor": 2}}}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"max_position_embeddings": 8192, "seq_length": 2048}, 2048),
        ({"max_position_embeddings": 8192, "seq_length": "long"}, None),
        ({}, None),
    ],
)
def test_the_longest_sequence_follows_from_the_positions_and_rope(
    fields: dict[str, Any], length: int | None
) -> None:
    assert parse_config(fields).max_length == length


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"torch_dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float16", "torch_dtype": "float32"}, "float16"),
        ({"torch_dtype": "torch.float32"}, "float32"),
        ({"vision_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"torch_dtype": "complex"}, None),
        ({"torch_dtype": 16}, None),
        ({}, None),
    ],
)
def test_the_dtype_is_found_in_the_parts_too(fields: dict[str, Any], dtype: str | None) -> None:
    assert parse_config(fields).dtype == dtype


@pytest.mark.parametrize(
    ("quantized", "method"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "MXFP4"}, "mxfp4"),
        ({"quant_method": "compressed_tensors"}, "compressed-tensors"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}, "modelopt_fp4"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ({"quant_method": 4, "bits": "4"}, None),
        ("awq", None),
    ],
)
def test_the_quantization_is_named_as_vllm_names_it(quantized: Any, method: str | None) -> None:
    assert parse_config({"quantization_config": quantized}).quantization == method


def test_the_quantization_is_also_found_in_the_text_part_and_in_the_file_beside() -> None:
    text = {"num_attention_heads": 4, "quantization_config": {"quant_method": "gptq"}}
    assert parse_config({"text_config": text}).quantization == "gptq"
    beside = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    }
    assert parse_config({}, beside).quantization == "modelopt"
    assert parse_config({}, beside).kv_dtype == "fp8"
    assert parse_config({"compression_config": {"quant_method": "x"}}, beside).quantization == "x"


def test_a_text_that_cannot_be_written_out_is_none() -> None:
    raw = json.loads(
        '{"architectures": ["\\ud800ForCausalLM"], "model_type": "\\udfff", "dtype": "float16\\ud800", '
        '"quantization_config": {"quant_method": "fp8\\ud800"}}'
    )
    found = parse_config(raw)
    assert (found.architecture, found.model_type) == (None, None)
    assert (found.dtype, found.quantization) == (None, None)


@pytest.mark.parametrize(
    ("fields", "in_parts"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, False),
        ({"attn_config": {"kv_n_heads": 4}, "ffn_config": {}}, False),
        ({"vision_config": None, "rope_scaling": {"factor": 2}}, False),
        ({"thinker_config": {"text_config": {"num_attention_heads": 28}}, "talker_config": {}}, True),
        ({"vision_config": {}, "tts_config": {}}, True),
        ({"kimia_mimo_layers": 6}, True),
    ],
)
def test_a_model_made_of_several_is_told(fields: dict[str, Any], in_parts: bool) -> None:
    assert parse_config({"num_attention_heads": 28, **fields}).in_parts == in_parts


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: str(path.stem))
def test_of_the_known_models_only_the_one_that_sees_is_in_parts(path: Path) -> None:
    assert config(path.stem).in_parts == (path.stem == "gemma-3-27b")


def test_the_sizes_that_gpus_divide_are_the_layers_and_the_vocabulary_as_filled_up() -> None:
    raw = {"intermediate_size": 14336, "moe_intermediate_size": None, "n_inner": "x", "vocab_size": 32_001}
    assert parse_config(raw).widths == (14336, 32_064)


WRITTEN = {field for path in CONFIGS.glob("*.json") for field in json.loads(path.read_text("utf-8"))}
RARER = {"type", "rope_type", "factor", "n_head", "bits", "attn_config", "sliding_window_pattern"}
FIELDS = st.sampled_from(sorted(WRITTEN | RARER))
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from([0, -1, "32"])
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=8),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(raw=JSON, beside=JSON)
def test_nonsense_makes_a_fact_unknown_and_never_raises(raw: Any, beside: Any) -> None:
    found = parse_config(raw, beside)
    for fact in (found.attention_heads, found.kv_heads, found.layers, found.max_length, found.head_size):
        assert fact is None or 0 < fact <= 2**50
    heads_refusal(found, 4)
    kv_replication(found, 4)
    quantization_refusal(found, *T4)
    dtype_warning(found, None, *T4)


@pytest.mark.parametrize(
    "value", ["32", -32, 0, 1.5, float("inf"), float("nan"), True, [32], {"a": 1}, 10**30]
)
def test_a_number_that_is_none_is_unknown(value: Any) -> None:
    found = parse_config({"num_attention_heads": value, "num_hidden_layers": value})
    assert (found.attention_heads, found.layers) == (None, None)


def test_parts_nested_without_end_do_not_exhaust_the_stack() -> None:
    raw: dict[str, Any] = {"num_attention_heads": 4}
    for _ in range(5000):
        raw = {"text_config": raw}
    assert parse_config(raw).attention_heads is None


def write(directory: Path, name: str, size: int) -> None:
    (directory / name).write_bytes(b"\0" * size)


def safetensors(directory: Path, name: str, **tensors: tuple[str, int]) -> int:
    """Write a file with the named tensors, each of a type and a number of bytes; give its size."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor, (dtype, size) in tensors.items():
        header[tensor] = {"dtype": dtype, "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    head = json.dumps(header).encode()
    data = len(head).to_bytes(8, "little") + head + b"\0" * offset
    (directory / name).write_bytes(data)
    return len(data)


def index(directory: Path, total: Any, *files: str, name: str = "model.safetensors.index.json") -> None:
    weight_map = {f"tensor{n}": file for n, file in enumerate(files)}
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / name).write_text(json.dumps(content), "utf-8")


def test_the_index_tells_the_size_of_files_that_are_not_here_yet(tmp_path: Path) -> None:
    index(tmp_path, 5000, "model-1.safetensors", "model-2.safetensors")
    write(tmp_path, "model-1.safetensors", 10)
    assert read_weights(tmp_path) == 5000
    assert read_wide_bytes(tmp_path) is None


def test_files_that_are_all_here_are_weighed_themselves(tmp_path: Path) -> None:
    index(tmp_path, 5000, "model-1.safetensors", "model-2.safetensors")
    for name, size in (("model-1.safetensors", 30), ("model-2.safetensors", 40), ("other.safetensors", 900)):
        write(tmp_path, name, size)
    assert read_weights(tmp_path) == 70


def test_the_consolidated_file_is_the_one_vllm_loads(tmp_path: Path) -> None:
    write(tmp_path, "consolidated.safetensors", 100)
    write(tmp_path, "model-00001-of-00002.safetensors", 60)
    write(tmp_path, "model-00002-of-00002.safetensors", 50)
    assert read_weights(tmp_path) == 100


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"model.safetensors": 9, "pytorch_model.bin": 8}, 9),
        ({"pytorch_model.bin": 8, "training_args.bin": 1, "model.pt": 7}, 8),
        ({"model.pt": 7, "optimizer.pt": 100}, 7),
        ({"model.gguf": 5}, 5),
        ({"m-00001-of-00002.gguf": 5, "m-00002-of-00002.gguf": 6}, 11),
        ({"model-Q4.gguf": 5, "model-Q8.gguf": 9}, None),
        ({"config.json": 5}, None),
    ],
)
def test_the_files_are_taken_in_the_order_of_vllm(
    tmp_path: Path, files: dict[str, int], size: int | None
) -> None:
    for name, length in files.items():
        write(tmp_path, name, length)
    assert read_weights(tmp_path) == size


@pytest.mark.parametrize("content", ["", "[]", "[" * 100000, '{"metadata": 3, "weight_map": 4}', "{"])
def test_a_broken_index_is_no_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content, "utf-8")
    write(tmp_path, "model.safetensors", 12)
    assert read_weights(tmp_path) == 12


@pytest.mark.parametrize("total", ["5000", -5, 0, None, [5000], 1.5])
def test_a_broken_total_is_unknown(tmp_path: Path, total: Any) -> None:
    index(tmp_path, total, "model-1.safetensors")
    assert read_weights(tmp_path) is None


def test_a_directory_that_is_not_there_has_no_weights(tmp_path: Path) -> None:
    assert read_weights(tmp_path / "none") is None
    assert read_wide_bytes(tmp_path / "none") is None


def test_what_is_kept_in_32_bits_is_told_by_the_heads_of_the_files(tmp_path: Path) -> None:
    size = safetensors(tmp_path, "a.safetensors", x=("F32", 40), y=("BF16", 8))
    size += safetensors(tmp_path, "b.safetensors", z=("F32", 4))
    found = with_weights(ModelConfig(layers=3), tmp_path)
    assert (found.weight_bytes, found.wide_bytes, found.layers) == (size, 44, 3)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", b"\5\0\0\0\0\0\0\0{"]
)
def test_a_file_that_is_no_safetensors_tells_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_wide_bytes(tmp_path) is None


def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_do() -> None:
    assert heads_refusal(config("smollm2-135m"), 3) is None
    assert heads_refusal(config("smollm2-135m"), 2) == (
        "The model has 9 attention heads, which --tensor-parallel-size 2 does not divide: use one of 1, 3, 9"
    )
    assert heads_refusal(ModelConfig(), 7) is None


def test_kv_heads_must_be_shared_out_evenly_too() -> None:
    odd = ModelConfig(attention_heads=24, kv_heads=6)
    assert heads_refusal(odd, 4) == (
        "The model has 6 KV heads, which --tensor-parallel-size 4 does not divide: "
        "use one of 1, 2, 3, 6, 12, 24"
    )
    assert heads_refusal(config("deepseek-v3"), 16) is None


def test_a_gpu_holds_at_least_one_kv_head() -> None:
    llama = config("llama-3.1-70b")
    assert [kv_heads_per_gpu(llama, size) for size in (1, 2, 4, 8, 16)] == [8, 4, 2, 1, 1]
    assert kv_heads_per_gpu(config("deepseek-v3"), 8) == 1
    assert kv_heads_per_gpu(ModelConfig(), 8) is None


def test_more_gpus_than_kv_heads_are_noted() -> None:
    llama = config("llama-3.1-70b")
    assert kv_replication(llama, 8) is None
    assert "each of which is held by 2 GPUs" in (kv_replication(llama, 16) or "")
    assert "latent" in (kv_replication(config("deepseek-v3"), 8) or "")
    assert kv_replication(config("deepseek-v3"), 1) is None
    assert kv_replication(ModelConfig(kv_heads=1), 4) == (
        "The model has 1 KV head, which is held by 4 GPUs, so from --tensor-parallel-size 1 on the KV cache "
        "of a GPU becomes no smaller"
    )


def test_bfloat16_is_refused_below_ampere_only_if_asked_for() -> None:
    llama = config("llama-3.1-8b")
    assert dtype_refusal(llama, "bfloat16", *T4) == (
        "--dtype bfloat16 needs compute capability 8.0, and Tesla T4 has 7.5: use --dtype float16"
    )
    for option in (None, "auto", "half", "float32", "nonsense"):
        assert dtype_refusal(llama, option, *T4) is None
    assert dtype_refusal(llama, "bfloat16", *A100) is None
    assert dtype_refusal(llama, "bfloat16", None, "?") is None
    assert "takes float16" in (dtype_warning(llama, None, *T4) or "")
    assert dtype_warning(llama, None, *A100) is None
    assert dtype_warning(llama, "half", *T4) is None


def test_a_model_that_overflows_in_float16_is_not_sent_there() -> None:
    gemma = config("gemma-3-27b")
    assert "--dtype float32" in (dtype_refusal(gemma, "bfloat16", *T4) or "")
    assert "gemma3" in (dtype_refusal(gemma, "half", *H100) or "")
    assert dtype_refusal(gemma, "half", *T4) == (
        "--dtype half is not for gemma3, whose numbers overflow in 16 bits of that kind: use --dtype float32"
    )
    assert "float32, twice the size" in (dtype_warning(gemma, "auto", *T4) or "")


@pytest.mark.parametrize(
    ("method", "dtype", "refused"),
    [
        ("mxfp4", "half", True),
        ("mxfp4", "bfloat16", False),
        ("fp8", "half", False),
        ("fp8", "float32", True),
        ("compressed-tensors", "float32", False),
        ("of_my_own", "float32", False),
        ("mxfp4", None, False),
    ],
)
def test_a_quantization_computes_in_types_of_its_own(method: str, dtype: str | None, refused: bool) -> None:
    refusal = dtype_refusal(ModelConfig(quantization=method), dtype, *H100)
    assert (refusal is not None) == refused


def test_a_quantization_that_no_type_of_the_gpu_is_for_cannot_be_run_there() -> None:
    model = ModelConfig(quantization="mxfp4")
    assert dtype_refusal(model, "half", *H100) == (
        "--dtype half is not for the quantization mxfp4: use --dtype bfloat16"
    )
    for dtype in ("half", "float32", "bfloat16"):
        refusal = dtype_refusal(model, dtype, *T4) or ""
        assert "Tesla T4 cannot run this model" in refusal
        assert "use --dtype" not in refusal
    gemma = ModelConfig(model_type="gemma3", quantization="fp8")
    assert "cannot run" in (dtype_refusal(gemma, "half", *T4) or "")


def test_the_types_of_the_quantization_asked_for_are_judged_where_the_model_has_none() -> None:
    llama = config("llama-3.1-8b")
    assert dtype_refusal(llama, "float32", *H100, quantization="fp8") == (
        "--dtype float32 is not for the quantization fp8: use --dtype bfloat16"
    )
    assert "float16" in (dtype_refusal(llama, "float32", *T4, quantization="fp8") or "")
    assert dtype_refusal(llama, "half", *T4, quantization="fp8") is None
    # The weights are converted, which is not the method of checkpoints of that name.
    assert dtype_refusal(llama, "half", *H100, quantization="mxfp8") is None
    assert dtype_refusal(ModelConfig(quantization="mxfp8"), "half", *H100) is not None
    own = ModelConfig(quantization="torchao")
    assert dtype_refusal(own, "float32", *H100, quantization="fp8") is None


@pytest.mark.parametrize(
    ("method", "capability", "refused"),
    [
        ("mxfp4", (7, 5), True),
        ("mxfp4", (8, 0), False),
        ("fp8", (7, 0), True),
        ("fp8", (7, 5), False),
        ("awq", (7, 0), True),
        ("gptq", (7, 0), False),
        ("fp_quant", (9, 0), True),
        ("fp_quant", (12, 0), False),
        ("of_my_own", (3, 0), False),
    ],
)
def test_a_quantization_wants_a_gpu_that_is_able(
    method: str, capability: tuple[int, int], refused: bool
) -> None:
    refusal = quantization_refusal(ModelConfig(quantization=method), capability, "GPU")
    assert (refusal is not None) == refused


def test_the_quantization_asked_for_is_judged_where_the_model_has_none() -> None:
    assert quantization_refusal(config("gpt-oss-20b"), *T4) == (
        "The quantization mxfp4 needs compute capability 8.0, and Tesla T4 has 7.5: use another GPU, or the "
        "model in another quantization"
    )
    assert quantization_refusal(ModelConfig(), (7, 0), "V100", "fp8") is not None
    assert quantization_refusal(ModelConfig(), *T4, "mxfp8") is None
    assert quantization_refusal(replace(ModelConfig(), quantization="mxfp8"), *T4) is not None
    assert quantization_refusal(ModelConfig(), None, "?", "fp8") is None
