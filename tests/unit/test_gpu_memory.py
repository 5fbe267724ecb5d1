"""What vLLM will ask of a GPU, whether that much is free, and what is said when it is not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vllm_stack.worker.gpu_memory import (
    GpuMemory,
    Holder,
    describe,
    occupied,
    read_slice,
)

GIB = 1024**3


def gpu(free: float, *holders: Holder, index: str = "0", total: float = 100) -> GpuMemory:
    return GpuMemory(index, "NVIDIA H100", int(total * GIB), int(free * GIB), holders)


def test_a_gpu_is_occupied_when_a_byte_is_missing_of_what_vllm_asks_for() -> None:
    exactly = GpuMemory("0", "NVIDIA H100", total=1001, free=921)  # 0.92 of it is 920.92
    short = GpuMemory("1", "NVIDIA H100", total=1001, free=920)
    assert occupied((exactly, short), 0.92) == (short,)


def test_nothing_is_occupied_for_a_server_that_asks_for_nothing() -> None:
    assert not occupied([gpu(free=0)], 0)


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
