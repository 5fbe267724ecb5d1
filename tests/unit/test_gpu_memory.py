"""What vLLM will ask of a GPU, whether that much is free, and what is said when it is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_stack.worker.gpu_memory import (
    DEFAULT_SHARE,
    GpuMemory,
    Holder,
    describe,
    needed_share,
    occupied,
    read_slice,
)

GIB = 1024**3
SERVE = ("/opt/vllm/bin/vllm", "serve", "org/model", "--port", "5001")


def gpu(free: float, *holders: Holder, index: str = "0", total: float = 100) -> GpuMemory:
    return GpuMemory(index, "NVIDIA H100", int(total * GIB), int(free * GIB), holders)


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
    assert not occupied([gpu(free=0)], 0)


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


def test_a_gpu_is_occupied_when_a_byte_is_missing_of_what_vllm_asks_for() -> None:
    exactly = GpuMemory("0", "NVIDIA H100", total=1001, free=921)  # 0.92 of it is 920.92
    short = GpuMemory("1", "NVIDIA H100", total=1001, free=920)
    assert occupied((exactly, short), 0.92) == (short,)


def test_the_line_names_the_memory_and_its_holder() -> None:
    busy = gpu(3.1, Holder(4711, int(70.1 * GIB), "user alice: python train.py"), total=79.6)
    assert describe(busy, 0.92) == (
        "GPU 0 (NVIDIA H100) has 3.1 of 79.6 GiB free, vLLM asks for 73.2; "
        "process 4711 (user alice: python train.py) holds 70.1 GiB"
    )


def test_the_largest_holders_are_named_and_the_others_counted() -> None:
    crowd = [Holder(pid, pid * GIB if pid % 2 else None, f"user u{pid}: x") for pid in range(1, 8)]
    told = describe(gpu(3, *crowd), 0.92).partition("; ")[2]
    assert told == (
        "process 7 (user u7: x) holds 7.0 GiB, process 5 (user u5: x) holds 5.0 GiB, "
        "process 3 (user u3: x) holds 3.0 GiB, process 1 (user u1: x) holds 1.0 GiB and 3 more"
    )


def test_a_holder_whose_share_the_driver_does_not_tell_is_named_all_the_same() -> None:
    told = describe(gpu(3, Holder(7, None, "user bob: python")), 0.92)
    assert told.endswith("process 7 (user bob: python) holds what the driver does not tell")


@pytest.mark.parametrize(
    ("token", "named"), [("3", "GPU 3"), ("GPU-11aa", "GPU-11aa"), ("MIG-22bb", "MIG-22bb")]
)
def test_a_gpu_is_named_by_its_word_in_cuda_visible_devices(token: str, named: str) -> None:
    told = describe(gpu(3, index=token), 0.92)
    assert told.startswith(f"{named} (NVIDIA H100) has 3.0 of 100.0 GiB free")
    assert told.endswith("the driver names no process that holds it")


def test_a_worker_without_gpus_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert read_slice(()) == ()


def test_the_wrapper_loads_no_driver_library() -> None:
    loads = (
        "import sys, vllm_stack.worker.life, vllm_stack.worker.gpu_memory; sys.exit('pynvml' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", loads], timeout=60, check=False).returncode == 0
