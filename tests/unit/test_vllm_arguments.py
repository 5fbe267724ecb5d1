"""What a vLLM command line says of one option, as vLLM's parser reads it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_stack.vllm_arguments import DEFAULT_SHARE, needed_share, value_of

SERVE = ("/opt/vllm/bin/vllm", "serve", "org/model", "--port", "5001")


@pytest.mark.parametrize(
    ("args", "value"),
    [
        ("", None),
        ("--quantization fp8", "fp8"),
        ("--quantization=fp8", "fp8"),
        ("--quant fp8", "fp8"),
        ("-q fp8", "fp8"),
        ("-q=fp8", "fp8"),
        ("-q awq --quantization fp8", "fp8"),
        ("--quantization-config fp8", None),
        ("--q_of_mine fp8", None),
        ("--quantization", ""),
        ("--quantization=", ""),
        ("-- quantization", None),
        ("- quantization", None),
    ],
)
def test_an_option_is_found_by_any_of_its_names(args: str, value: str | None) -> None:
    assert value_of((*SERVE, *args.split()), "--quantization", "-q") == value


def test_a_value_may_be_negative_or_have_any_letters() -> None:
    assert value_of(("--max-model-len", "-1"), "--max-model-len") == "-1"
    assert value_of(('--hf_overrides={"a_b": "c=d"}',), "--hf-overrides") == '{"a_b": "c=d"}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("max-model-len: 4096\n", "4096"),
        ("max_model_len: 4k # short", "4k"),
        ("dtype: auto\nmax-model-len: 1\nmax-model-len: 2\nseed: 0\n", "2"),
        ("max-model: 4096\n", "4096"),  # an abbreviation
        ("max-model-len: '4 k # long'\n", "4 k # long"),
        ('"max-model-len" : "4k"  # long\n', "4k"),
        ("max-model-len:\nseed: 0\n", None),
        ("max-model-len: null\n", None),
        ("max-model-len:4096\n", None),  # no YAML
        ("rope:\n  max-model-len: 4096\n", None),
        ("max-model-len-of-mine: 4096\n", None),
    ],
)
def test_the_file_of_config_is_read_like_the_command_line(
    text: str, value: str | None, tmp_path: Path
) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text(text)
    assert value_of((*SERVE, "--config", str(config)), "--max-model-len") == value
    assert value_of((*SERVE, "--max-model-len", "7", "--config", str(config)), "--max-model-len") == "7"


@pytest.mark.parametrize(
    ("args", "share"),
    [
        ("", DEFAULT_SHARE),
        ("--gpu-memory-utilization 0.5", 0.5),
        ("--gpu-memory-utilization=0.5", 0.5),
        ("--gpu_memory_utilization 0.5", 0.5),
        ("--gpu_memory_utilization=0.5", 0.5),
        ("--device-memory-utilization 0.5", 0.5),  # another name of it
        ("--gpu-mem 0.5", 0.5),  # an abbreviation
        ("--gpu-memory-utilization 0.5 --gpu_memory_utilization=0.7", 0.7),  # the last one counts
        ("--gpu-memory-utilization 1", 1.0),
        ("--max-model-len 0.5", DEFAULT_SHARE),
        ("--gpu-memory-utilization-of-mine 0.5", DEFAULT_SHARE),
        # It sizes the cache; the look at the free memory goes by the share all the same.
        ("--kv-cache-memory-bytes 10G", DEFAULT_SHARE),
        ("--kv-cache-memory-bytes 10G --gpu-memory-utilization 0.3", 0.3),
    ],
)
def test_the_share_is_the_one_vllm_reads_from_its_command_line(args: str, share: float) -> None:
    assert needed_share((*SERVE, *args.split())) == share


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "much", ""])
def test_nothing_is_waited_for_when_vllm_will_refuse_the_share(value: str) -> None:
    assert needed_share((*SERVE, f"--gpu-memory-utilization={value}")) == 0
    assert needed_share((*SERVE, "--gpu-memory-utilization")) == 0


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("dtype: bfloat16\ngpu-memory-utilization: 0.4  # shared\n", 0.4),
        ("gpu_memory_utilization : '0.4'\n", 0.4),
        ('"device-memory-utilization": 0.4\n', 0.4),
        ("compilation-config:\n  gpu-memory-utilization: 0.4\n", DEFAULT_SHARE),
        ("# gpu-memory-utilization: 0.4\n", DEFAULT_SHARE),
    ],
)
def test_the_share_may_stand_in_the_file_vllm_is_configured_with(
    text: str, share: float, tmp_path: Path
) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text(text)
    assert needed_share((*SERVE, "--config", str(config))) == share
    assert needed_share((*SERVE, "--gpu-memory-utilization", "0.6", "--config", str(config))) == 0.6


def test_a_configuration_file_that_cannot_be_read_is_left_to_vllm(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path in (tmp_path / "missing", tmp_path, binary):
        assert needed_share((*SERVE, "--config", str(path))) == DEFAULT_SHARE


def test_what_vllm_asks_for_by_itself_is_92_percent() -> None:
    """tests/e2e/test_real_memory_check.py asks the real one."""
    assert DEFAULT_SHARE == 0.92


def test_the_whole_name_of_an_option_is_no_abbreviation_of_another() -> None:
    argv = (*SERVE, "--kv-cache-dtype", "fp8", "--model", "org/other")
    assert value_of(argv, "--kv-cache-dtype") == "fp8"
    assert value_of(argv, "--kv-cache-dtype-skip-layers") is None
    assert value_of(argv, "--model-impl") is None
    assert value_of((*SERVE, "--kv-cache-dtype-s", "0"), "--kv-cache-dtype-skip-layers") == "0"


@pytest.mark.timeout(10)
def test_a_configuration_file_without_an_end_is_left_to_vllm(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert needed_share((*SERVE, "--config", str(path))) == DEFAULT_SHARE


def test_a_configuration_file_may_come_from_windows(tmp_path: Path) -> None:
    (tmp_path / "vllm.yaml").write_bytes(b"seed: 0\r\nmax-model-len: 4096\r\n")
    assert value_of((*SERVE, "--config", str(tmp_path / "vllm.yaml")), "--max-model-len") == "4096"
