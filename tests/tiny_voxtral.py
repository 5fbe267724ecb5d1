"""Make a tiny random Voxtral Realtime that real vLLM serves: the audio routes, and `/v1/realtime`.

Nothing is downloaded, as in `tiny_model.py`. The answers are nonsense, but they follow the audio: two sounds
have two answers, and the same sound always has the same one. Names and formats are those of Mistral; torch is
not needed to write them.

    python -m tests.tiny_voxtral DIR
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mistral_common.tokens.tokenizers.base import SpecialTokens
from safetensors.numpy import save_file

CONTEXT_TOKENS = 2048
SIZE = 64  # Two heads of 32, the smallest that the CPU attention kernels of vLLM take.
HEADS = 2
LAYERS = 2
MEL_BINS = 16
DOWNSAMPLED = 4
CONDITION_SIZE = 32
SAMPLE_RATE = 16_000
TOKENS_A_SECOND = 12.5
SPECIAL_TOKENS = tuple(token.value for token in SpecialTokens)
WORDS = (
    "the",
    "a",
    "worker",
    "proxy",
    "answers",
    "asks",
    "stream",
    "of",
    "tokens",
    "and",
    "then",
    "one",
    "two",
)
BYTES = 256
VOCABULARY = len(SPECIAL_TOKENS) + BYTES + len(WORDS)
SPECTROGRAM = {"num_mel_bins": MEL_BINS, "hop_length": 160, "window_size": 400}


def tokenizer() -> dict[str, Any]:
    """Give what is in tekken.json: each byte is a token, and each of the words."""
    texts = [bytes([byte]) for byte in range(BYTES)] + [f" {word}".encode() for word in WORDS]
    return {
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": None}
            for rank, text in enumerate(texts)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": text, "is_control": True} for rank, text in enumerate(SPECIAL_TOKENS)
        ],
        "config": {
            "pattern": r"\s?\S+|\s",
            "num_vocab_tokens": len(texts),
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": len(SPECIAL_TOKENS),
            "version": "v13",
        },
        "audio": {
            "sampling_rate": SAMPLE_RATE,
            "frame_rate": TOKENS_A_SECOND,
            "audio_encoding_config": SPECTROGRAM,
            "transcription_format": "streaming",
            "transcription_delay_ms": 480,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": 32,
        },
    }


def config() -> dict[str, Any]:
    """Give what is in params.json."""
    transformer = {
        "dim": SIZE,
        "n_layers": LAYERS,
        "head_dim": SIZE // HEADS,
        "hidden_dim": SIZE,
        "n_heads": HEADS,
        "n_kv_heads": HEADS,
        "vocab_size": VOCABULARY,
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "causal": True,
    }
    encoder = {
        **transformer,
        "audio_encoding_args": {**SPECTROGRAM, "sampling_rate": SAMPLE_RATE, "global_log_mel_max": 1.5},
        "pos_embed": "rope",
        "sliding_window": 750,
    }
    downsampling = {"downsample_factor": DOWNSAMPLED}
    return {
        **transformer,
        "dtype": "bfloat16",
        "max_position_embeddings": CONTEXT_TOKENS,
        "tied_embeddings": False,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": CONDITION_SIZE,
        "multimodal": {"whisper_model_args": {"encoder_args": encoder, "downsample_args": downsampling}},
    }


def weights() -> dict[str, np.ndarray]:
    """Give what is in consolidated.safetensors: random, of a size that leaves all layers about as loud."""
    generator = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        spread = np.prod(shape[1:]) ** -0.5
        return generator.normal(0, spread, shape).astype(np.float32)

    def transformer(prefix: str) -> dict[str, np.ndarray]:
        tensors = {f"{prefix}norm.weight": np.ones(SIZE, np.float32)}
        for layer in range(LAYERS):
            at = f"{prefix}layers.{layer}"
            for part in ("attention.wq", "attention.wk", "attention.wv", "attention.wo"):
                tensors[f"{at}.{part}.weight"] = random(SIZE, SIZE)
            for part in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"):
                tensors[f"{at}.{part}.weight"] = random(SIZE, SIZE)
            for part in ("attention_norm", "ffn_norm"):
                tensors[f"{at}.{part}.weight"] = np.ones(SIZE, np.float32)
        return tensors

    tensors = transformer("")
    for layer in range(LAYERS):
        condition = f"layers.{layer}.ada_rms_norm_t_cond"
        tensors[f"{condition}.0.weight"] = random(CONDITION_SIZE, SIZE)
        tensors[f"{condition}.2.weight"] = random(SIZE, CONDITION_SIZE)
    tensors["tok_embeddings.weight"] = 4 * random(VOCABULARY, SIZE)  # As loud as the sound.
    tensors["output.weight"] = random(VOCABULARY, SIZE)
    # Only words are ever likely: no special token, no part of a character.
    tensors["output.weight"][: -len(WORDS)] = 0

    encoder = "mm_whisper_embeddings.whisper_encoder"
    tensors |= transformer(f"{encoder}.transformer.")
    for layer in range(LAYERS):
        at = f"{encoder}.transformer.layers.{layer}"
        for part in ("attention.wq", "attention.wv", "attention.wo", "feed_forward.w2"):
            tensors[f"{at}.{part}.bias"] = np.zeros(SIZE, np.float32)
    for index, channels in enumerate((MEL_BINS, SIZE)):
        convolution = f"{encoder}.conv_layers.{index}.conv"
        kernels = random(SIZE, channels, 3)
        # What changes in the sound is heard, and no constant level.
        tensors[f"{convolution}.weight"] = 4 * (kernels - kernels.mean((1, 2), keepdims=True))
        tensors[f"{convolution}.bias"] = np.zeros(SIZE, np.float32)
    adapter = "mm_whisper_embeddings.audio_language_projection"
    tensors[f"{adapter}.0.weight"] = random(SIZE, SIZE * DOWNSAMPLED)
    tensors[f"{adapter}.2.weight"] = random(SIZE, SIZE)
    return tensors


def build(directory: Path) -> None:
    """Write the model to ``directory``."""
    directory.mkdir(parents=True)
    (directory / "tekken.json").write_text(json.dumps(tokenizer()))
    (directory / "params.json").write_text(json.dumps(config()))
    # vLLM reads the one above; this says to others that here is a model.
    (directory / "config.json").write_text(json.dumps({"model_type": "voxtral_realtime"}))
    save_file(weights(), directory / "consolidated.safetensors")


def main(arguments: list[str]) -> int:
    """Build the model where the command line says."""
    if len(arguments) != 1:
        print("usage: python -m tests.tiny_voxtral DIR", file=sys.stderr)
        return 2
    build(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
