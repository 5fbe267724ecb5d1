"""Make a tiny random model that real vLLM can load and serve.

Nothing is downloaded: the weights are random, the tokenizer is trained on the text below, and the seed is
fixed. The answers are nonsense, but every code path of a real engine runs. Four attention heads and two
KV heads allow tensor parallelism of 1 and 2.

    python tests/tiny_model.py DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

CONTEXT_TOKENS = 2048
MAX_VOCABULARY = 512
SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TRAINING_TEXT = (
    "The worker answers requests, and the proxy gives each request to the worker with the least to do.",
    "When a worker dies, its processes end, its memory is freed, and it starts again after a while.",
    "One, two, three, four: a stream of tokens comes in small pieces, and the last piece says it is done.",
    "What is the capital of France? Paris is the capital of France, and London is the capital of England.",
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the text above; no input is outside its vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        model_max_length=CONTEXT_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a two-layer Llama of about 130,000 parameters with seeded random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # No id without a text.
        hidden_size=64,
        intermediate_size=64,
        head_dim=32,  # The smallest that the CPU attention kernels of vLLM take.
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,  # Tied, greedy decoding would repeat the last token for ever.
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(torch.bfloat16)


def build(directory: Path) -> None:
    """Write the model to ``directory``."""
    disable_progress_bar()
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(directory)
    make_model(tokenizer).save_pretrained(directory)


def main(arguments: list[str]) -> int:
    """Build the model where the command line says."""
    if len(arguments) != 1:
        print("usage: python tests/tiny_model.py DIR", file=sys.stderr)
        return 2
    build(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
