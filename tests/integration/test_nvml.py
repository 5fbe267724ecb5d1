"""Boxes of GPUs of every kind, as the real nvidia-ml-py tells of them on a stand-in for the driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import StackFactory, ask
from tests.support.nvml import GIB, LIBRARY, Device, StandIn, build, gpus
from tests.support.polling import until
from vllm_stack.errors import GpuMemoryUnknown
from vllm_stack.worker.gpu_memory import GpuMemory, describe, occupied, read_slice

NAME = "NVIDIA H100 80GB HBM3"
USABLE = 80 * GIB - GIB // 2
READ_GPUS = """
import dataclasses, json
from vllm_stack.gpus.nvml import read_gpus
print(json.dumps(dataclasses.asdict(read_gpus())))
"""


@pytest.fixture
def here(box: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The box is that of this process's children: `read_slice` asks the driver in one."""
    for name, value in box.environment.items():
        monkeypatch.setenv(name, value)
    return box


def sleeper(title: str) -> subprocess.Popen[bytes]:
    """Start a process that is called `title`; it must be killed."""
    return subprocess.Popen([title, "600"], executable="/bin/sleep")


def run(box: StandIn, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, **box.environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen_by_render(box: StandIn) -> dict[str, Any]:
    return dict(json.loads(run(box, READ_GPUS)))


# What render sees.


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_render_counts_the_gpus_of_a_box(count: int, box: StandIn) -> None:
    box.show(*gpus(count))
    assert seen_by_render(box) == {
        "gpus": [
            {"index": index, "uuid": gpu.uuid, "name": NAME, "memory_total": 80 * GIB}
            for index, gpu in enumerate(gpus(count))
        ],
        "trouble": None,
    }


def test_render_is_told_that_there_is_no_driver(box: StandIn, tmp_path: Path) -> None:
    """A library that is none is what the linker makes of a missing one, also where there is a driver."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / LIBRARY).touch()
    nothing = StandIn(tmp_path / "empty" / LIBRARY, tmp_path)
    assert seen_by_render(nothing) == {
        "gpus": [],
        "trouble": "no NVIDIA driver was found (libnvidia-ml.so.1 is missing)",
    }


@pytest.mark.parametrize(
    ("errors", "trouble"),
    [
        ({"nvmlInit": "driver-not-loaded"}, "the NVIDIA driver does not answer: Driver Not Loaded"),
        ({"nvmlInit": "mismatch"}, "the NVIDIA driver does not answer: RM has detected"),
        ({"nvmlDeviceGetCount_v2": "unknown"}, "the NVIDIA driver could not describe its GPUs: Unknown"),
        (
            {"nvmlDeviceGetCount_v2": "unknown", "nvmlShutdown": "unknown"},
            "the NVIDIA driver could not describe its GPUs: Unknown",
        ),
    ],
)
def test_render_is_told_what_ails_the_driver(errors: dict[str, str], trouble: str, box: StandIn) -> None:
    box.show(*gpus(2), errors=errors)
    seen = seen_by_render(box)
    assert seen["gpus"] == []
    assert seen["trouble"].startswith(trouble)


def test_render_is_told_of_a_gpu_that_is_lost(box: StandIn) -> None:
    one, other = gpus(2)
    box.show(one, replace(other, errors={"*": "lost"}))
    assert seen_by_render(box)["trouble"] == "the NVIDIA driver could not describe its GPUs: GPU is lost"


# What a worker sees of its slice.


@pytest.mark.parametrize("tokens", [("0",), ("2", "0"), ("7", "6", "5", "4", "3", "2", "1", "0")])
def test_a_slice_is_read_by_index_in_its_order(tokens: tuple[str, ...], here: StandIn) -> None:
    here.show(*(replace(gpu, used=place * GIB) for place, gpu in enumerate(gpus(8))))
    assert read_slice(tokens) == tuple(
        GpuMemory(token, NAME, USABLE, USABLE - int(token) * GIB) for token in tokens
    )


def test_a_slice_is_read_by_uuid_or_the_beginning_of_one(here: StandIn) -> None:
    one, other = gpus(2)
    here.show(one, replace(other, used=GIB))
    whole, part = other.uuid, other.uuid[:8]
    assert [gpu.free for gpu in read_slice((whole, part, one.uuid))] == [USABLE - GIB, USABLE - GIB, USABLE]
    with pytest.raises(GpuMemoryUnknown, match="the memory of GPU-9 cannot be read: Not Found"):
        read_slice(("GPU-9",))
    with pytest.raises(GpuMemoryUnknown, match="the memory of GPU- cannot be read: Not Found"):
        read_slice(("GPU-",))  # it fits both


def test_a_mig_device_is_read_by_its_uuid(here: StandIn) -> None:
    name = f"{NAME} MIG 1g.10gb"
    unsupported = {"nvmlDeviceGetComputeRunningProcesses_v3": "not-supported"}
    free = Device("MIG-11aa", name, 10 * GIB, GIB // 4, errors=unsupported)
    busy = Device("MIG-22bb", name, 10 * GIB, GIB // 4, 9 * GIB, ((os.getpid(), 9 * GIB),))
    here.show(replace(gpus(1)[0], migs=(free, busy)))
    first, second = read_slice(("MIG-11aa", "MIG-22bb"))
    assert first == GpuMemory("MIG-11aa", name, int(9.75 * GIB), int(9.75 * GIB))
    assert (second.free, second.holders[0].pid) == (int(0.75 * GIB), os.getpid())
    assert occupied((first, second), 0.92) == (second,)


def test_a_driver_that_does_not_tell_what_it_keeps_for_itself_is_asked_the_older_way(here: StandIn) -> None:
    here.show(*gpus(1), errors={"nvmlDeviceGetMemoryInfo_v2": "function-not-found"})
    assert read_slice(("0",)) == (GpuMemory("0", NAME, 80 * GIB, USABLE),)


# Who holds the memory.


def test_the_holders_of_a_busy_gpu_are_named(here: StandIn) -> None:
    leftover = sleeper("vllm-stack:out-1a:worker-1::EngineCore")
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    try:
        holders = ((os.getpid(), 9 * GIB), (leftover.pid, 60 * GIB), (beyond, None))
        here.show(replace(gpus(1)[0], used=70 * GIB, processes=holders, graphics=((os.getpid(), 9 * GIB),)))

        def look() -> tuple[GpuMemory, ...]:
            seen = read_slice(("0",))
            return seen if "EngineCore" in str(seen) else ()  # between fork and exec it has another name

        (busy,) = until(look, 30, "the leftover has its title")
    finally:
        leftover.kill()
        leftover.wait()
    assert [(holder.pid, holder.bytes) for holder in busy.holders] == [*holders]
    mine, left, elsewhere = (holder.who for holder in busy.holders)
    assert mine.startswith(f"user {psutil.Process().username()}: ")
    assert psutil.Process().cmdline()[0][:20] in mine
    assert left == "vllm-stack:out-1a:worker-1::EngineCore 600"
    assert elsewhere == "no such process is seen here: it is in a container, or has just ended"
    assert occupied((busy,), 0.92) == (busy,)
    assert f"process {leftover.pid} ({left}) holds 60.0 GiB" in describe(busy, 0.92)


def test_a_command_line_cannot_write_a_line_of_its_own_into_the_log(here: StandIn) -> None:
    evil = sleeper("sleep\n\x1b[2J 2026 worker-0: all is well")
    try:
        here.show(replace(gpus(1)[0], processes=((evil.pid, GIB),)))

        def look() -> str:
            (gpu,) = read_slice(("0",))
            return gpu.holders[0].who if "2J" in gpu.holders[0].who else ""

        who = until(look, 30, "the process runs its program")
    finally:
        evil.kill()
        evil.wait()
    assert who.isprintable()
    assert "sleep ?[2J 2026" in who


def test_holders_that_may_not_be_asked_for_are_nobody(here: StandIn) -> None:
    gpu = replace(gpus(1)[0], used=70 * GIB, processes=((os.getpid(), GIB),))
    here.show(gpu, errors={"nvmlDeviceGetComputeRunningProcesses_v3": "no-permission"})
    (busy,) = read_slice(("0",))
    assert (busy.free, busy.holders) == (USABLE - 70 * GIB, ())


# A driver that does not tell.


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ({"nvmlInit": "driver-not-loaded"}, "the NVIDIA driver does not answer: Driver Not Loaded"),
        (
            {"nvmlDeviceGetMemoryInfo_v2": "crash"},
            "the program that asks the NVIDIA driver was killed by SIGSEGV",
        ),
        ({"nvmlDeviceGetName": "hang"}, "the NVIDIA driver has not answered for 3 s"),
        ({"nvmlShutdown": "unknown"}, None),  # after all is told, it does not matter
    ],
)
def test_a_broken_driver_is_told_of_and_holds_up_nobody(
    errors: dict[str, str], told: str | None, here: StandIn
) -> None:
    here.show(*gpus(1), errors=errors)
    if told is None:
        assert len(read_slice(("0",))) == 1
        return
    with pytest.raises(GpuMemoryUnknown) as raised:
        read_slice(("0",), timeout=3 if "hang" in errors.values() else 60)
    assert str(raised.value) == told
    readers = [child for child in psutil.Process().children() if "gpu_reader" in " ".join(child.cmdline())]
    assert not readers


@pytest.mark.parametrize(
    ("token", "text"), [("1", "GPU is lost"), ("5", "Invalid Argument"), ("MIG-0", "Not Found")]
)
def test_a_gpu_that_is_lost_or_not_there_is_named(token: str, text: str, here: StandIn) -> None:
    one, other = gpus(2)
    here.show(one, replace(other, errors={"*": "lost"}))
    assert len(read_slice(("0",))) == 1
    with pytest.raises(GpuMemoryUnknown, match=rf"the memory of (GPU )?{token} cannot be read: {text}"):
        read_slice(("0", token))


def test_a_machine_without_a_driver_is_told_of(
    here: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(GpuMemoryUnknown, match="NVML Shared Library Not Found"):
        read_slice(("0",))


# Memory that comes and goes.

POLLING = """
import sys
from vllm_stack.worker.gpu_memory import occupied
from vllm_stack.worker.gpu_reader import read_memory
while occupied(read_memory(["0"]), 0.92):
    print("busy", flush=True)
print("free", flush=True)
"""


def test_memory_that_becomes_free_is_seen_by_who_looks_again(box: StandIn) -> None:
    box.show(replace(gpus(1)[0], used=70 * GIB, processes=((4711, 70 * GIB),)))
    with subprocess.Popen(
        [sys.executable, "-P", "-c", POLLING],
        env={**os.environ, **box.environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as polling:
        try:
            assert polling.stdout is not None
            assert [polling.stdout.readline() for _ in range(3)] == ["busy\n"] * 3
            box.show(*gpus(1))
            assert polling.stdout.read().endswith("free\n")
            assert polling.wait(30) == 0
        finally:
            polling.kill()


SHUT_DOWN = """
import pynvml
from vllm_stack.errors import GpuMemoryUnknown
from vllm_stack.worker.gpu_reader import read_memory
for tokens in (["0"], ["9"]):
    try:
        read_memory(tokens)
    except GpuMemoryUnknown:
        assert tokens == ["9"]
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError_Uninitialized:
        print("shut down")
"""


def test_the_driver_is_let_go_after_every_look(box: StandIn) -> None:
    box.show(*gpus(1))
    assert run(box, SHUT_DOWN) == "shut down\n" * 2


# The stand-in itself.

NVLINKS = """
import pynvml
pynvml.nvmlInit()
handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(4)]
for handle in handles:
    linked = [
        str(pynvml.nvmlDeviceGetP2PStatus(handle, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK))
        for other in handles
    ]
    remote = pynvml.nvmlDeviceGetNvLinkRemotePciInfo(handle, 0).busId
    print(pynvml.nvmlDeviceGetPciInfo(handle).busId, remote, *linked)
"""


def test_the_stand_in_has_pairs_of_nvlink(box: StandIn) -> None:
    """0 is linked, 5 is not supported."""
    box.show(*(replace(gpu, nvlinks=(place ^ 1,)) for place, gpu in enumerate(gpus(4))))
    ids = [f"00000000:0{place}:00.0" for place in range(1, 5)]
    assert run(box, NVLINKS).splitlines() == [
        f"{ids[0]} {ids[1]} 5 0 5 5",
        f"{ids[1]} {ids[0]} 0 5 5 5",
        f"{ids[2]} {ids[3]} 5 5 5 0",
        f"{ids[3]} {ids[2]} 5 5 0 5",
    ]


def test_a_missing_compiler_fails_the_tests_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AssertionError, match="apt-get install gcc"):
        build(tmp_path)


# A whole stack on it.


def test_render_pins_each_worker_to_its_gpu_and_vllm_is_started_with_it(
    stack: StackFactory, box: StandIn
) -> None:
    box.show(*gpus(2))
    with stack(workers=2, device="cuda", env=box.environment) as one:
        one.up()
        for worker in range(2):
            state = json.loads(ask(one.ports[worker], path="/fake/state")[1])
            pins = {name: value for name, value in state["env"].items() if name.startswith("CUDA")}
            assert pins == {"CUDA_VISIBLE_DEVICES": str(worker), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def test_render_refuses_more_workers_than_the_box_has_gpus(
    stack: StackFactory, box: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    box.show(*gpus(3))
    assert stack(workers=4, device="cuda", env=box.environment).render() == 1
    assert "Insufficient GPUs: Required 4, but only 3 are available" in capfd.readouterr().out
