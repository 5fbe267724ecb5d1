"""Whether a model fits: the figures are worked out by hand here, from the shapes of real models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_stack.errors import UsageError
from vllm_stack.model.config import ModelConfig, parse_config
from vllm_stack.model.demand import Demand
from vllm_stack.model.doubts import WATCHED
from vllm_stack.model.estimate import estimate, longest_context, smallest_size
from vllm_stack.model.fit import Fit
from vllm_stack.model.kv_cache import BLOCK, bytes_per_token
from vllm_stack.model.rules import splits
from vllm_stack.vllm_arguments import AUTO, parse_length, parse_number

CONFIGS = Path(__file__).parent / "configs"
GIB = 2**30
# What the indexes of the published files say.
WEIGHTS = {
    "deepseek-v3": 688_586_727_753,
    "gemma-3-27b": 54_864_812_768,
    "gpt-oss-120b": 65_248_815_744,
    "gpt-oss-20b": 13_761_264_768,
    "llama-3.1-70b": 141_107_412_992,
    "llama-3.1-8b": 16_060_522_496,
    "mixtral-8x7b": 93_405_585_408,
    "qwen2.5-72b": 145_412_407_296,
    "qwen3-8b": 16_381_470_720,
    "qwen3-next-80b": 162_648_650_752,
    "smollm2-135m": 269_060_552,
}


def config(name: str, **changes: Any) -> ModelConfig:
    parsed = parse_config(json.loads((CONFIGS / f"{name}.json").read_text("utf-8")))
    return replace(parsed, weight_bytes=WEIGHTS[name], **changes)


def demand(size: int = 1, gib: float = 80, **options: Any) -> Demand:
    return Demand(size, int(gib * GIB), options.pop("share", 0.92), **options)


def is_certain(fit: Fit) -> bool:
    return not fit.doubts and not fit.unknowns


def term(fit: Fit, name: str) -> Any:
    return next(term for term in fit.terms if term.name == name)


@pytest.mark.parametrize(
    ("name", "size", "bits", "per_token"),
    [
        ("llama-3.1-8b", 1, 16, 131_072),  # 32 layers x 2 x 8 heads x 128 x 2 bytes
        ("llama-3.1-8b", 4, 16, 32_768),
        ("llama-3.1-8b", 16, 16, 16_384),  # one head each, and no less
        ("llama-3.1-8b", 1, 8, 65_536),
        ("llama-3.1-70b", 1, 16, 327_680),
        ("qwen2.5-72b", 1, 16, 327_680),
        ("qwen3-8b", 1, 16, 147_456),
        ("mixtral-8x7b", 1, 16, 131_072),
        ("deepseek-v3", 1, 16, 576 * 2 * 61),
        ("deepseek-v3", 8, 16, 576 * 2 * 61),
        ("gemma-3-27b", 1, 16, 507_904),  # 62 x 2 x 16 x 128 x 2
        ("gpt-oss-20b", 1, 16, 49_152),  # 24 x 2 x 8 x 64 x 2
        ("smollm2-135m", 3, 16, 7_680),  # 30 x 2 x 1 x 64 x 2
        ("qwen3-next-80b", 1, 16, None),
    ],
)
def test_a_token_takes_its_bytes_of_the_kv_cache(
    name: str, size: int, bits: int, per_token: int | None
) -> None:
    assert bytes_per_token(config(name), size, bits) == per_token


def test_the_terms_are_weights_cache_and_the_rest() -> None:
    fit = estimate(config("llama-3.1-8b"), demand(size=2))
    assert [term.name for term in fit.terms] == ["weights", "KV cache", "the rest"]
    assert term(fit, "weights").least == 8_030_261_248
    assert term(fit, "KV cache").least == 65_536 * 131_072
    # In whole blocks, with the one that vLLM keeps back.
    assert term(fit, "KV cache").bytes == 65_536 * (131_072 + 16)
    assert term(fit, "the rest").least == 0
    assert fit.budget == int(80 * GIB * 0.92)
    assert (fit.verdict, is_certain(fit)) == ("fits", True)


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    # 12 layers see all of 131072 tokens and 12 the last 128 of them; 2048 bytes of a token and layer.
    fit = estimate(config("gpt-oss-20b"), demand(gib=24))
    assert term(fit, "KV cache").least == 2048 * 12 * (131_072 + 128)
    # 127 before and two batches of 2048 make 264 blocks, and one more where the window begins.
    assert term(fit, "KV cache").bytes == 2048 * 12 * 16 * (8192 + 265 + 1)


def test_layers_with_a_window_are_filled_up_to_whole_groups() -> None:
    # 52 with a window and 10 without make 6 groups of 10 and one: the figures are vLLM's own for 80 GiB.
    fit = estimate(config("gemma-3-27b"), demand())
    window_blocks = -(-(1023 + 2 * 8192) // 16) + 1
    assert term(fit, "KV cache").bytes == 8192 * 10 * 16 * (8192 + 6 * window_blocks + 1)


def test_a_window_longer_than_the_request_is_none() -> None:
    fit = estimate(config("gpt-oss-20b"), demand(max_length=100))
    assert term(fit, "KV cache").least == 49_152 * 100


def test_without_the_hybrid_manager_a_window_saves_nothing() -> None:
    whole = demand(asked=frozenset({"--disable-hybrid-kv-cache-manager"}))
    assert term(estimate(config("gpt-oss-20b"), whole), "KV cache").least == 49_152 * 131_072


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 16),
        ({"kv_cache_dtype": "auto"}, 16),
        ({"kv_cache_dtype": "fp8"}, 8),
        ({"kv_cache_dtype": "FP8_E4M3"}, 8),
        ({"dtype": "float32"}, 32),
        ({"dtype": "half"}, 16),
        ({"dtype": "float32", "kv_cache_dtype": "bfloat16"}, 16),
    ],
)
def test_the_type_of_the_cache_is_asked_for_or_the_models(options: dict[str, Any], bits: int) -> None:
    fit = estimate(config("llama-3.1-8b"), demand(max_length=1600, **options))
    assert term(fit, "KV cache").least == 131_072 * 1600 * bits // 16


def test_the_checkpoint_may_ask_for_a_smaller_cache() -> None:
    quantized = config("llama-3.1-8b", kv_dtype="fp8")
    assert term(estimate(quantized, demand()), "KV cache").least == 65_536 * 131_072


def test_a_type_that_is_not_known_makes_the_cache_unknown() -> None:
    fit = estimate(config("llama-3.1-8b"), demand(kv_cache_dtype="turboquant_3bit_nc"))
    assert [term.name for term in fit.terms] == ["weights", "the rest"]
    assert not is_certain(fit)
    assert fit.unknowns == ("the KV cache is not known",)


def test_a_model_in_float32_is_served_in_16_bits() -> None:
    wide = config("llama-3.1-8b", dtype="float32")
    assert term(estimate(wide, demand()), "weights").bytes == 8_030_261_248
    assert term(estimate(wide, demand(dtype="float32")), "weights").bytes == 16_060_522_496


def test_files_of_a_type_that_nothing_tells_may_be_loaded_as_half_of_them() -> None:
    # A config without a type is one of float32 to vLLM, which loads it in 16 bits.
    untold = config("qwen3-8b", dtype=None)
    weights = term(estimate(untold, demand()), "weights")
    assert (weights.bytes, weights.least) == (16_381_470_720, 8_190_735_360)
    heavy = replace(untold, weight_bytes=90 * 10**9)
    assert estimate(heavy, demand(max_length=8192)).verdict == "tight"
    assert estimate(replace(heavy, dtype="bfloat16"), demand(max_length=8192)).verdict == "too-big"
    assert estimate(replace(heavy, wide_bytes=0), demand(max_length=8192)).verdict == "too-big"
    assert estimate(heavy, demand(gib=40, max_length=8192)).verdict == "too-big"
    assert estimate(heavy, demand(max_length=8192, dtype="float32")).verdict == "too-big"


def test_a_model_in_parts_is_refused_only_if_its_greater_part_is_too_much() -> None:
    seeing = config("gemma-3-27b")
    weights = term(estimate(seeing, demand()), "weights")
    assert (weights.bytes, weights.least) == (54_864_812_768, 54_864_812_768 * 60 // 100)
    fit = estimate(seeing, demand(gib=48, max_length=1024))
    assert fit.verdict == "tight"
    assert "51.1 GiB for the weights, parts of which vLLM may not load" in fit.sentence()
    assert estimate(replace(seeing, in_parts=False), demand(gib=48, max_length=1024)).verdict == "too-big"
    fit = estimate(seeing, demand(gib=24, max_length=1024))
    assert fit.verdict == "too-big"
    assert "30.7 GiB for the weights, parts of which vLLM may not load" in fit.sentence()


def test_float32_doubles_what_is_stored_in_16_bits() -> None:
    weights = term(estimate(config("llama-3.1-8b"), demand(dtype="float32")), "weights")
    assert (weights.bytes, weights.least) == (32_121_044_992, 16_060_522_496)


def test_what_the_files_keep_in_32_bits_is_halved_whatever_the_config_says() -> None:
    mixed = config("llama-3.1-8b", wide_bytes=16_000_000_000)
    assert term(estimate(mixed, demand()), "weights").least == 8_060_522_496
    # The scales of a quantized model may stay as they are.
    quantized = term(estimate(replace(mixed, quantization="fp8"), demand()), "weights")
    assert (quantized.bytes, quantized.least) == (16_060_522_496, 8_060_522_496)


def test_layers_for_speculation_are_not_loaded() -> None:
    weights = term(estimate(config("deepseek-v3"), demand(size=8, gib=141)), "weights")
    assert weights.bytes == -(-(688_586_727_753 * 61 // 62) // 8)
    assert weights.least == -(-(688_586_727_753 * 61 // 63) // 8)


@pytest.mark.parametrize(
    ("name", "size", "gib", "verdict"),
    [
        ("llama-3.1-8b", 1, 80, "fits"),
        ("llama-3.1-8b", 1, 24, "too-big"),
        ("llama-3.1-70b", 1, 80, "too-big"),
        ("llama-3.1-70b", 2, 80, "too-big"),
        ("llama-3.1-70b", 4, 80, "fits"),
        ("deepseek-v3", 8, 80, "too-big"),
        ("deepseek-v3", 8, 141, "fits"),
        ("gpt-oss-120b", 1, 80, "fits"),
        ("mixtral-8x7b", 2, 80, "fits"),
        ("qwen3-next-80b", 1, 80, "too-big"),
        ("smollm2-135m", 1, 8, "fits"),
    ],
)
def test_known_models_fit_where_they_are_known_to(name: str, size: int, gib: int, verdict: str) -> None:
    assert estimate(config(name), demand(size, gib)).verdict == verdict


def test_what_only_the_estimate_makes_too_much_is_tight() -> None:
    # 14.96 GiB of weights and 16 of cache against 32.2: the rest decides.
    fit = estimate(config("llama-3.1-8b"), demand(gib=35))
    assert (fit.verdict, is_certain(fit)) == ("tight", True)
    assert fit.least < fit.budget < fit.total


def test_a_doubt_makes_a_refusal_a_warning() -> None:
    sure = demand(gib=24)
    assert estimate(config("llama-3.1-8b"), sure).verdict == "too-big"
    for option in ("--quantization", "--cpu-offload-gb", "--hf-overrides"):
        fit = estimate(config("llama-3.1-8b"), replace(sure, asked=frozenset({option})))
        assert (fit.verdict, is_certain(fit)) == ("tight", False)
        assert option in fit.sentence()


def test_the_quantization_the_model_has_anyway_is_no_doubt() -> None:
    asked = demand(gib=8, asked=frozenset({"--quantization"}))
    assert estimate(config("gpt-oss-20b"), asked).verdict == "too-big"


def test_what_adds_to_the_sum_leaves_a_refusal_one() -> None:
    fit = estimate(config("llama-3.1-8b"), demand(gib=24, asked=frozenset({"--enable-lora"})))
    assert (fit.verdict, is_certain(fit)) == ("too-big", False)
    assert "LoRA adapters are not counted" in fit.sentence()


def test_a_hybrid_is_weighed_by_its_weights_alone() -> None:
    fit = estimate(config("qwen3-next-80b"), demand(size=4))
    assert [term.name for term in fit.terms] == ["weights", "the rest"]
    assert (fit.verdict, is_certain(fit)) == ("fits", False)
    assert longest_context(config("qwen3-next-80b"), demand(size=4)) is None


def test_without_weights_little_is_known_and_nothing_refused() -> None:
    fit = estimate(ModelConfig(), demand())
    assert (fit.verdict, is_certain(fit)) == ("fits", False)
    assert "the size of the weights is not known" in fit.sentence()
    assert smallest_size(ModelConfig(), demand()) is None
    assert longest_context(ModelConfig(), demand()) is None


def test_a_cache_of_fixed_size_must_hold_one_request_and_ignores_the_share() -> None:
    llama = config("llama-3.1-8b")
    assert estimate(llama, demand(gib=35, kv_cache_bytes=17 * GIB)).verdict == "fits"
    assert estimate(llama, demand(gib=35, kv_cache_bytes=15 * GIB)).verdict == "too-big"
    # 16 GiB are a request to the byte, and vLLM keeps one block back.
    assert estimate(llama, demand(gib=35, kv_cache_bytes=16 * GIB)).verdict == "tight"
    assert estimate(llama, demand(gib=35, kv_cache_bytes=21 * GIB)).verdict == "too-big"
    fit = estimate(llama, demand(gib=35, kv_cache_bytes=15 * GIB))
    assert "--kv-cache-memory-bytes gives 15.0 GiB to a request that needs 16.0 GiB" in fit.sentence()
    assert fit.budget == 35 * GIB


def test_with_auto_the_length_gives_way() -> None:
    llama = config("llama-3.1-8b")
    assert estimate(llama, demand(gib=24, max_length=AUTO)).verdict == "fits"
    assert estimate(llama, demand(gib=16, max_length=AUTO)).verdict == "too-big"
    assert "--max-model-len" not in estimate(llama, demand(gib=16, max_length=AUTO)).sentence()


def test_the_sentence_names_the_figures_and_both_ways_out() -> None:
    assert estimate(config("llama-3.1-8b"), demand(gib=24)).sentence() == (
        "The GPU must hold at least 31.0 GiB (15.0 GiB for the weights + 16.0 GiB for the KV cache of a "
        "request of 131072 tokens) of the 22.1 GiB that vLLM may use (24.0 GiB x 0.92), so vLLM would not "
        "start: use --tensor-parallel-size 2 or --max-model-len 41936 after `--`"
    )


def test_the_sentence_offers_only_what_helps() -> None:
    too_heavy = estimate(config("llama-3.1-70b"), demand())
    assert too_heavy.way_out == "use --tensor-parallel-size 4"
    hopeless = estimate(config("deepseek-v3"), demand(gib=24))
    assert hopeless.way_out == "use GPUs with more memory, or the model in a smaller quantization"
    assert estimate(config("llama-3.1-8b"), demand()).way_out == ""


def test_a_way_out_divides_the_heads() -> None:
    assert "--tensor-parallel-size 3" in estimate(config("smollm2-135m"), demand(gib=0.2)).way_out
    assert "tensor-parallel" not in estimate(config("smollm2-135m"), demand(size=3, gib=0.05)).way_out


def test_a_way_out_stays_within_the_gpus_there_are() -> None:
    heavy, asked = config("llama-3.1-70b"), demand(gib=48, max_length=AUTO)
    assert estimate(heavy, replace(asked, most_gpus=4)).way_out == "use --tensor-parallel-size 4"
    # A GPU that is one part of a larger one stands alone.
    for most in (1, 3):
        too_few = estimate(heavy, replace(asked, most_gpus=most))
        assert too_few.way_out == "use GPUs with more memory, or the model in a smaller quantization"


def test_a_larger_share_is_a_way_out_where_it_is_enough() -> None:
    llama, asked = config("llama-3.1-8b"), demand(gib=40, most_gpus=1, max_length=AUTO)
    assert estimate(llama, replace(asked, share=0.3)).way_out == (
        "use --gpu-memory-utilization 0.92 after `--`"
    )
    # More is no help, and a cache of fixed size does not heed the share.
    assert "utilization" not in estimate(llama, replace(asked, share=0.3, memory_total=16 * GIB)).way_out
    assert "utilization" not in estimate(llama, replace(asked, memory_total=16 * GIB)).way_out
    fixed = replace(asked, share=0.3, kv_cache_bytes=30 * GIB)
    assert "utilization" not in estimate(llama, fixed).way_out


@pytest.mark.parametrize(
    ("name", "gib", "size"),
    [
        ("llama-3.1-8b", 80, 1),
        ("llama-3.1-8b", 24, 2),
        ("llama-3.1-70b", 80, 4),
        ("deepseek-v3", 80, 16),
        ("deepseek-v3", 24, None),
        ("smollm2-135m", 8, 1),
        ("smollm2-135m", 0.2, 3),
        ("smollm2-135m", 0.05, None),
    ],
)
def test_the_smallest_slice_that_holds_the_model_is_found(name: str, gib: float, size: int | None) -> None:
    assert smallest_size(config(name), demand(gib=gib)) == size


def test_the_smallest_slice_keeps_within_the_gpus_there_are() -> None:
    assert smallest_size(config("llama-3.1-70b"), demand(most_gpus=2)) is None
    assert smallest_size(config("llama-3.1-70b"), demand(most_gpus=6)) == 4


def test_the_smallest_slice_need_not_be_a_power_of_two() -> None:
    six = replace(config("llama-3.1-70b", attention_heads=48, kv_heads=6), weight_bytes=400 * GIB)
    assert smallest_size(six, demand(max_length=AUTO)) == 6
    assert estimate(six, demand(max_length=AUTO)).way_out == "use --tensor-parallel-size 6"
    # A layer, or a vocabulary, that 6 GPUs could not share.
    assert smallest_size(replace(six, widths=(14336,)), demand(max_length=AUTO)) is None
    assert smallest_size(replace(six, widths=(28672 * 3,)), demand(max_length=AUTO)) == 6


NAMES = st.sampled_from(sorted(WEIGHTS))
SIZES = st.sampled_from([1, 2, 3, 4, 8, 16])
MEMORY = st.integers(1, 200 * GIB)


@settings(max_examples=150)
@given(name=NAMES, size=SIZES, memory=MEMORY, length=st.none() | st.integers(1, 300_000))
def test_more_gpus_never_need_more_of_each_for_the_weights(
    name: str, size: int, memory: int, length: int | None
) -> None:
    one = Demand(size, memory, 0.9, max_length=length)
    few, many = estimate(config(name), one), estimate(config(name), replace(one, size=2 * size))
    assert term(many, "weights").bytes <= term(few, "weights").bytes
    assert many.least <= few.least
    for fit in (few, many):
        assert fit.least <= fit.total
        assert fit.sentence().count("\n") == 0


@settings(max_examples=150)
@given(
    name=NAMES.filter(lambda name: name != "qwen3-next-80b"),
    size=SIZES,
    memory=MEMORY,
    length=st.none() | st.integers(1, 300_000),
    fixed=st.none() | st.integers(1, 50 * GIB),
)
def test_the_longest_context_fits_and_a_block_more_does_not(
    name: str, size: int, memory: int, length: int | None, fixed: int | None
) -> None:
    asked = Demand(size, memory, 0.9, max_length=length, kv_cache_bytes=fixed)
    model = config(name)
    most = length or model.max_length or 0
    longest = longest_context(model, asked)
    assert longest is not None
    assert 0 <= longest <= most
    if longest:
        assert estimate(model, replace(asked, max_length=longest)).verdict == "fits"
    if longest < most:
        assert longest % BLOCK == 0
        assert estimate(model, replace(asked, max_length=longest + BLOCK)).verdict != "fits"


def test_the_last_whole_block_before_the_length_asked_for_counts() -> None:
    # Room for 62 blocks and the one kept back: 1000 tokens want a 63rd.
    asked = demand(max_length=1000, kv_cache_bytes=63 * 16 * 131_072)
    assert longest_context(config("llama-3.1-8b"), asked) == 62 * 16


@settings(max_examples=100)
@given(name=NAMES, memory=MEMORY)
def test_the_smallest_slice_fits_and_half_of_it_does_not(name: str, memory: int) -> None:
    model, asked = config(name), Demand(1, memory, 0.9)
    size = smallest_size(model, asked)
    if size is None:
        assert estimate(model, replace(asked, size=1)).verdict != "fits"
        return
    assert splits(model, size)
    assert estimate(model, replace(asked, size=size)).verdict == "fits"
    if size > 1:
        assert estimate(model, replace(asked, size=size // 2)).verdict != "fits"


COUNTS = st.integers(1, 2**50)


@settings(max_examples=150)
@given(
    model=st.builds(
        ModelConfig,
        attention_heads=st.none() | COUNTS,
        kv_heads=st.none() | COUNTS,
        head_size=st.none() | COUNTS,
        layers=st.none() | COUNTS,
        cached_layers=st.none() | COUNTS,
        max_length=st.none() | COUNTS,
        window=st.none() | COUNTS,
        windowed_layers=st.integers(0, 2**50),
        draft_layers=st.integers(0, 2**50),
        weight_bytes=st.none() | COUNTS,
        wide_bytes=st.none() | COUNTS,
        hybrid=st.booleans(),
    ),
    size=SIZES,
    memory=MEMORY,
    asked=st.frozensets(st.sampled_from(WATCHED)),
)
def test_whatever_a_config_says_the_estimate_comes_to_an_end(
    model: ModelConfig, size: int, memory: int, asked: frozenset[str]
) -> None:
    fit = estimate(model, Demand(size, memory, 0.9, asked=asked))
    assert fit.sentence()
    assert fit.least <= fit.total


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("32K", 32768),
        ("1.5m", 1_500_000),
        ("25.6k", 25_600),
        ("1M", 1_048_576),
        (" 4096 ", 4096),
        ("auto", AUTO),
        ("AUTO", AUTO),
        ("-1", AUTO),
    ],
)
def test_a_length_is_read_as_vllm_reads_it(text: str, length: int) -> None:
    assert parse_length(text) == length


@pytest.mark.parametrize(
    "text", ["", "k", "1.5M", "8 k", "1e5", "8kb", "eight", "-2", "0", "-8k", "9" * 400 + "k"]
)
def test_a_length_that_vllm_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--max-model-len"):
        parse_length(text)


def test_a_size_is_read_the_same_way_and_named() -> None:
    assert parse_number("2G", "--kv-cache-memory-bytes") == 2 * GIB
    with pytest.raises(UsageError, match=r"--kv-cache-memory-bytes '1\.5G' is not a number"):
        parse_number("1.5G", "--kv-cache-memory-bytes")


def test_a_stage_has_its_share_of_layers_with_and_without_a_window() -> None:
    model = ModelConfig(
        attention_heads=8,
        kv_heads=8,
        head_size=128,
        layers=32,
        cached_layers=32,
        windowed_layers=16,
        window=1024,
        max_length=32768,
        dtype="bfloat16",
        weight_bytes=8 * GIB,
    )
    whole, staged = (estimate(model, Demand(1, 80 * GIB, 0.9, stages=stages)) for stages in (1, 2))
    assert whole.kv_cache is not None
    assert staged.kv_cache is not None
    assert staged.kv_cache.bytes == whole.kv_cache.bytes // 2
    assert staged.kv_cache.least == whole.kv_cache.least // 2
