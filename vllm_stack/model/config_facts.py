"""What configs call things, and what families of models lean on without saying so in theirs.

Tables alone; `config.py` reads by them. From vLLM 0.32.0 and the classes of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "thinker_config")

HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
HIDDEN = ("hidden_size", "n_embd", "d_model")
HEAD_SIZES = ("head_dim", "hidden_size_per_head", "attention_head_dim", "kv_channels", "d_kv")
KV_HEADS = (
    "n_head_kv",
    "num_kv_heads",
    "num_key_value_heads",
    "multi_query_group_num",
    "num_attention_groups",
)
WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_hidden_size",
    "n_inner",
    "ffn_dim",
)
VOCABULARY_STEP = 64
# Parts of a config that are no models of their own; the next are marks of models that vLLM loads in part
# (models/phi4mm.py and kimi_audio.py, hf_to_vllm_mapper) and that have no parts in the config.
NO_MODELS = _words(
    "attn_config compression_config ffn_config generation_config init_config linear_attn_config "
    "quantization_config"
)
MARKS_OF_PARTS = ("embd_layer", "kimia_mimo_layers", "vision_lora")
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Published configs lean on these defaults of the classes of transformers.
DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "ernie4_5": {"num_key_value_heads": 2},
    "gemma": {"head_dim": 256, "num_key_value_heads": 16},
    "gemma2": {"head_dim": 256, "num_key_value_heads": 4, "sliding_window": 4096},
    "gemma3_text": {
        "head_dim": 256,
        "hidden_size": 2304,
        "max_position_embeddings": 131072,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
    },
    "glm": {"head_dim": 128, "num_key_value_heads": 2},
    "glm4": {"head_dim": 128, "num_key_value_heads": 2},
    "gpt_oss": {"head_dim": 64, "num_key_value_heads": 8, "sliding_window": 128},
    "llama4_text": {"head_dim": 128, "num_key_value_heads": 8},
    "mistral": {"num_key_value_heads": 8},
    "mixtral": {"num_key_value_heads": 8},
    "phimoe": {"num_key_value_heads": 8},
    "qwen3": {"head_dim": 128, "num_key_value_heads": 32},
    "qwen3_moe": {"num_key_value_heads": 4},
    "smollm3": {"num_key_value_heads": 4},
    "starcoder2": {"num_key_value_heads": 2},
}
# Without a field for KV heads these have as many as attention heads; others may have a name of their own.
ONE_KV_HEAD_EACH = _words(
    "baichuan bloom cohere cohere2 codegen gpt2 gpt_neo gpt_neox gptj granite internlm llama mpt olmo olmo2 "
    "opt persimmon phi phi3 qwen stablelm"
)
FALCONS = frozenset({"falcon", "RefinedWeb", "RefinedWebModel"})
# vllm/transformers_utils/model_arch_config_convertor.py, is_deepseek_mla.
MLA = _words(
    "axk1 deepseek_v2 deepseek_v3 deepseek_v32 dots3_note deepseek_mtp k3_dspark glm5_next glm5_next_text "
    "glm_moe_dsa glm4_moe_lite glm4_moe_lite_mtp kimi_k2 kimi_linear longcat_flash pangu_ultra_moe "
    "pangu_ultra_moe_mtp bailing_hybrid bailing_hybrid_mtp bailing_hybrid_v3_mtp hy_v4 hy_v4_mtp"
)
ATTENTION = _words(
    "* attention full_attention sliding_attention chunked_attention indexed_attention "
    "deepseek_sparse_attention qwen_sparse_attention"
)
MIXERS = (
    "attn_layer_period",
    "conv_L_cache",
    "full_attention_interval",
    "hybrid_override_pattern",
    "linear_attn_config",
    "linear_num_value_heads",
    "mamba_d_conv",
    "mamba_d_state",
    "ssm_cfg",
    "ssm_state_size",
    "state_size",
    "time_mix_extra_dim",
)
# Layers that differ in more than their window: one figure for all would be wrong.
UNEVEN = (
    "attention_other_setting",
    "block_configs",
    "compress_ratios",
    "cross_attention_layers",
    "global_head_dim",
    "hybrid_layer_pattern",
    "per_layer_config",
    "swa_head_dim",
    "swa_num_key_value_heads",
)
# Every n-th layer sees all, the others a window: the rule of the family, where the config does not tell.
PATTERNS = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3_text": 6,
    "gpt_oss": 2,
    "olmo3": 4,
}
WRITERS = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
DTYPES = {"half": "float16", "float": "float32", "float16": "float16"} | {
    name: name for name in ("bfloat16", "float32", "float8_e4m3fn", "float8_e5m2")
}
# Types of rope whose factor is in the maximum already (vllm/config/model.py, _get_and_verify_max_len).
SCALED = frozenset(
    {"su", "longrope", "llama3", "yarn", "telechat3-yarn", "deepseek_yarn", "deepseek_llama_scaling"}
)
