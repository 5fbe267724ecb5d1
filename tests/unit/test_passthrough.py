"""What follows `--` reaches vLLM, except what vllm-stack sets itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.errors import UsageError
from vllm_stack.passthrough import accept, has_option


@pytest.mark.parametrize(
    "args",
    [
        ("--port", "1"),
        ("--port=1",),
        ("--host", "0.0.0.0"),
        ("--api-key", "k"),
        ("--api_key=k",),
        ("--tensor_parallel_size", "2"),
        ("-tp", "2"),
        ("--data-parallel-size=2",),
        ("--root-path", "/x"),
        ("--revision", "main"),
        ("--por=1",),
        ("--tens", "2"),
    ],
)
def test_options_of_ours_are_refused_with_the_one_to_use(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        accept(args)
    assert f"'{args[0].partition('=')[0]}" in str(caught.value)


def test_a_key_is_not_repeated() -> None:
    for word in ("--api-key=sk-secret", "--api_key=sk-secret", "--api=sk-secret"):
        with pytest.raises(UsageError) as caught:
            accept((word,))
        assert "sk-secret" not in str(caught.value)


def test_other_options_pass_untouched() -> None:
    args = ("--max-model-len", "8192", "--dtype=bfloat16", "--seed", "-1", "--hf-overrides", '{"a": "./b"}')
    assert accept(args) == args


def test_relative_paths_become_absolute(tmp_path: Path) -> None:
    """Workers run in directories of their own, where `./x` would be something else."""
    (tmp_path / "chat.jinja").touch()
    (tmp_path / "auto").touch()
    args = (
        "--chat-template",
        "chat.jinja",
        "--download-dir=./models",
        "--lora-modules",
        "a=./a",
        "--x",
        "../y",
    )
    assert accept(args, cwd=tmp_path) == (
        "--chat-template",
        f"{tmp_path}/chat.jinja",
        f"--download-dir={tmp_path}/models",
        "--lora-modules",
        f"a={tmp_path}/a",
        "--x",
        f"{tmp_path}/../y",
    )
    assert accept(("--dtype", "auto", "--tokenizer", "org/name"), cwd=tmp_path) == (
        "--dtype",
        "auto",
        "--tokenizer",
        "org/name",
    )


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        accept(("--x", "a\0b"))


def test_an_option_of_the_users_is_recognised_in_every_spelling() -> None:
    assert has_option(("--gpu_memory_utilization=0.5",), "--gpu-memory-utilization")
    assert not has_option(("gpu-memory-utilization",), "--gpu-memory-utilization")


@pytest.mark.parametrize("word", ["-h", "--help", "--help=all", "--hel"])
def test_a_question_for_help_is_not_what_a_worker_is_started_for(word: str) -> None:
    with pytest.raises(UsageError, match=f"vllm serve {word}"):
        accept((word,))
    assert accept(("--headless",)) == ("--headless",)
