"""Boxes of GPUs of every kind, as the real nvidia-ml-py tells of them on a stand-in for the driver."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import StackFactory, ask
from tests.support.nvml import GIB, LIBRARY, Device, Gpu, StandIn, build, gpus
from tests.support.polling import until
from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus import box as told_box
from vllm_stack.gpus.driver import read_box
from vllm_stack.gpus.usage import GpuUsage, read_usage
from vllm_stack.worker.gpu_memory import GpuMemory, describe, occupied, read_slice

NAME = "NVIDIA H100 80GB HBM3"
USABLE = 80 * GIB - GIB // 2
NO_DRIVER = "no NVIDIA driver was found (libnvidia-ml.so.1 is missing)"
PATIENCE = 60  # seconds, for a machine that has much to do


@pytest.fixture
def here(box: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The box is that of this process's children: the driver is asked in one."""
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


def seen(index: int, gpu: Gpu) -> told_box.Gpu:
    """Give what is to be seen of a GPU with nothing on it."""
    return told_box.Gpu(
        index=index,
        uuid=gpu.uuid,
        name=NAME,
        memory_total=USABLE,
        memory_free=USABLE,
        capability=(9, 0),
        bus_id=f"00000000:{index + 1:02X}:00.0",
        numa_node=0,
    )


def ways(of: told_box.GpuBox) -> dict[tuple[int, int], str]:
    return {(link.one, link.other): link.way for link in of.links}


# What render sees.


@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_a_box_is_described_gpu_by_gpu(count: int, here: StandIn) -> None:
    here.show(*gpus(count))
    told = read_box(PATIENCE)
    assert told.gpus == tuple(seen(index, gpu) for index, gpu in enumerate(gpus(count)))
    assert (told.trouble, told.driver, told.cuda) == (None, "570.124.06", (12, 8))
    assert ways(told) == dict.fromkeys(itertools.combinations(range(count), 2), "NODE")


def test_a_box_of_different_gpus_is_told_as_it_is(here: StandIn) -> None:
    big, old = gpus(2)
    here.show(
        replace(big, capability=(12, 1), compute_mode=3, numa=1, cores=(62, 66), used=7 * GIB),
        replace(old, name="Tesla V100", total=16 * GIB, reserved=0, capability=(7, 0), compute_mode=2),
        cuda=13010,
    )
    told = read_box(PATIENCE)
    first, second = told.gpus
    assert told.cuda == (13, 1)
    assert (first.capability, first.compute_mode, first.numa_node) == ((12, 1), "exclusive", 1)
    assert (first.memory_total, first.memory_free) == (USABLE, USABLE - 7 * GIB)
    # The driver is asked for the cores of this machine only.
    assert first.cores == tuple(range(62, min(67, 64 * ((os.sysconf("SC_NPROCESSORS_CONF") + 63) // 64))))
    assert (second.name, second.memory_total, second.cores) == ("Tesla V100", 16 * GIB, ())
    assert (second.capability, second.compute_mode) == ((7, 0), "prohibited")
    assert ways(told) == {(0, 1): "SYS"}


def test_pairs_of_nvlink_are_told_apart_from_pairs_that_are_close(here: StandIn) -> None:
    levels = {0: {1: 10, 2: 20, 3: 30}, 1: {2: 0, 3: 40}, 2: {3: 50}}
    here.show(
        *(
            replace(
                gpu,
                nvlinks=(4, 4) if place == 5 else (5, 5) if place == 4 else (),
                pcie=levels.get(place, {}),
            )
            for place, gpu in enumerate(gpus(6))
        )
    )
    told = ways(read_box(PATIENCE))
    near = {(0, 1): "PIX", (0, 2): "PXB", (0, 3): "PHB", (1, 2): "PIX", (1, 3): "NODE", (2, 3): "SYS"}
    assert {pair: way for pair, way in told.items() if pair in near or way == "NVLINK"} == {
        **near,
        (4, 5): "NVLINK",
    }


def test_gpus_on_a_switch_are_all_linked_across_two_numa_nodes(here: StandIn) -> None:
    here.show(
        *(
            replace(
                gpu,
                nvlinks=tuple(other for other in range(8) if other != place),
                numa=place // 4,
                cores=(0, 31) if place < 4 else (32, 63),
            )
            for place, gpu in enumerate(gpus(8))
        )
    )
    told = read_box(PATIENCE)
    assert set(ways(told).values()) == {"NVLINK"}
    assert len(told.links) == 28
    assert told.way(7, 0) == "NVLINK"
    assert [gpu.numa_node for gpu in told.gpus] == [0] * 4 + [1] * 4
    assert {gpu.cores for gpu in told.gpus} == {tuple(range(32)), tuple(range(32, 64))}


def test_the_slices_of_a_gpu_are_told_with_who_is_on_them(here: StandIn) -> None:
    name = f"{NAME} MIG 3g.40gb"
    free = Device("MIG-11aa", name, 40 * GIB, GIB // 4)
    busy = Device("MIG-22bb", name, 40 * GIB, GIB // 4, 9 * GIB, ((os.getpid(), 9 * GIB),))
    gone = Device("MIG-33cc", name, errors={"nvmlDeviceGetUUID": "not-found"})
    whole, cut, empty = gpus(3)
    here.show(whole, replace(cut, migs=(free, busy, gone)), replace(empty, mig_mode=True))
    first, second, third = read_box(PATIENCE).gpus
    assert (first.mig_enabled, first.migs) == (False, ())
    assert (third.mig_enabled, third.migs) == (True, ())
    assert second.mig_enabled
    assert second.migs[0] == told_box.MigDevice("MIG-11aa", name, int(39.75 * GIB), int(39.75 * GIB))
    assert [(mig.uuid, mig.memory_free) for mig in second.migs[1:]] == [("MIG-22bb", int(30.75 * GIB))]
    assert [(process.pid, process.memory) for process in second.migs[1].processes] == [(os.getpid(), 9 * GIB)]


def test_who_computes_and_who_draws_is_told(here: StandIn) -> None:
    """A process that does both computes, and counts once."""
    beyond = int(Path("/proc/sys/kernel/pid_max").read_text()) + 1
    here.show(
        replace(
            gpus(1)[0],
            used=20 * GIB,
            processes=((os.getpid(), 9 * GIB), (beyond, None)),
            graphics=((os.getppid(), GIB), (os.getpid(), GIB)),
        )
    )
    (gpu,) = read_box(PATIENCE).gpus
    told = {process.pid: process for process in gpu.processes}
    assert {(process.pid, process.memory, process.computes) for process in gpu.processes} == {
        (os.getpid(), 9 * GIB, True),
        (beyond, None, True),
        (os.getppid(), GIB, False),
    }
    assert len(gpu.processes) == 3
    assert told[os.getpid()].user == psutil.Process().username()
    assert psutil.Process().cmdline()[0][:20] in told[os.getpid()].command
    assert all(process.command.isprintable() and len(process.command) <= 80 for process in gpu.processes)
    assert told[beyond].user is None
    assert told[beyond].command == "no such process is seen here: it is in a container, or has just ended"


# GPUs that ail.


def test_a_gpu_that_is_lost_hides_no_other(here: StandIn) -> None:
    """Wherever it is noticed, what the GPU still tells is kept."""
    one, lost, unreadable, reset, last = gpus(5)
    here.show(
        one,
        replace(lost, errors={"*": "lost"}),
        replace(
            unreadable, errors={"nvmlDeviceGetMemoryInfo": "unknown", "nvmlDeviceGetMemoryInfo_v2": "unknown"}
        ),
        replace(reset, errors={"nvmlDeviceGetComputeMode": "reset-required"}),
        last,
    )
    told = read_box(PATIENCE)
    assert told.trouble is None
    assert (told.gpus[0], told.gpus[4]) == (seen(0, one), seen(4, last))
    assert [gpu.index for gpu in told.gpus] == [0, 1, 2, 3, 4]
    assert [gpu.trouble for gpu in told.gpus[1:4]] == ["GPU is lost", "Unknown Error", "GPU requires restart"]
    assert [gpu.uuid for gpu in told.gpus[1:4]] == ["", unreadable.uuid, reset.uuid]
    assert told.gpus[2].name == NAME
    assert told.gpus[2].bus_id == "00000000:03:00.0"
    assert told.way(0, 4) == "NODE"
    assert told.way(0, 1) is None


def test_a_gpu_that_is_not_healthy_says_so(here: StandIn) -> None:
    facts: list[tuple[dict[str, Any], str | None, list[str]]] = [
        ({"recovery": 0, "clocks": 0x4}, None, []),  # it draws all the power that it may
        ({"remapping": "failed", "remapped": 9}, "a broken row of its memory could not be remapped", []),
        ({"recovery": 1}, "needs a reset (nvidia-smi --gpu-reset)", []),
        ({"recovery": 2}, "needs a reboot of the machine", []),
        ({"recovery": 4}, None, ["the driver runs it at reduced capacity"]),
        (
            {"remapping": "pending", "remapped": 3, "retiring": True, "ecc": 2},
            None,
            [
                "2 uncorrected memory errors since its driver was loaded",
                "rows of its memory wait to be remapped (3 for uncorrectable errors so far)",
                "pages of its memory wait to be retired",
            ],
        ),
        (
            {"clocks": 0x40 | 0x80, "temperature": 91},
            None,
            [
                "its clocks are held down by heat (91 degrees Celsius): look at its cooling",
                "its clocks are held down by the power brake: look at the power supply",
            ],
        ),
        (
            {"clocks": 0x20, "ecc": 1},
            None,
            ["1 uncorrected memory error since", "its clocks are held down by heat: look"],
        ),
    ]
    here.show(*(replace(gpu, **fact) for gpu, (fact, _, _) in zip(gpus(8), facts, strict=True)))
    for gpu, (fact, trouble, warnings) in zip(read_box(PATIENCE).gpus, facts, strict=True):
        assert (gpu.trouble or "").startswith(trouble or ""), fact
        assert (gpu.trouble is None) == (trouble is None), fact
        assert len(gpu.warnings) == len(warnings), fact
        assert all(told.startswith(begin) for told, begin in zip(gpu.warnings, warnings, strict=True)), fact


# Drivers that do not tell, or not all.

OPTIONAL = (
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetComputeMode",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetNumaNodeId",
    "nvmlDeviceGetCpuAffinity",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetRemappedRows",
    "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetCurrentClocksThrottleReasons",
)


@pytest.mark.parametrize("error", ["function-not-found", "not-supported", "no-permission", "unknown"])
def test_a_driver_that_tells_only_what_it_must_is_enough(error: str, here: StandIn) -> None:
    one, other = (replace(gpu, clocks=0x40, ecc=1, processes=((1, GIB),)) for gpu in gpus(2))
    here.show(one, other, errors=dict.fromkeys(OPTIONAL, error))
    assert read_box(PATIENCE) == told_box.GpuBox(
        tuple(told_box.Gpu(index, gpu.uuid, NAME, USABLE, USABLE) for index, gpu in enumerate((one, other)))
    )


def test_an_older_driver_is_asked_the_older_way(here: StandIn) -> None:
    newer = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetCurrentClocksEventReasons")
    here.show(replace(gpus(1)[0], clocks=0x80), errors=dict.fromkeys(newer, "function-not-found"))
    (gpu,) = read_box(PATIENCE).gpus
    assert (gpu.memory_total, gpu.memory_free, len(gpu.warnings)) == (80 * GIB, USABLE, 1)


def test_a_gpu_without_memory_of_its_own_has_the_machines(here: StandIn) -> None:
    neither = ("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetMemoryInfo")
    here.show(replace(gpus(1)[0], name="NVIDIA GB10"), errors=dict.fromkeys(neither, "not-supported"))
    (gpu,) = read_box(PATIENCE).gpus
    assert (gpu.trouble, gpu.memory_total) == (None, psutil.virtual_memory().total)
    assert 0 < gpu.memory_free < gpu.memory_total


def test_a_box_without_a_driver_says_so(
    here: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A library that is none is what the linker makes of a missing one, also where there is a driver."""
    (tmp_path / LIBRARY).touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    box = read_box(PATIENCE)
    assert box.gpus == ()
    assert (box.trouble or "").startswith(NO_DRIVER)
    with pytest.raises(DriverTrouble, match=re.escape(NO_DRIVER)):
        read_slice(("0",))


@pytest.mark.parametrize(
    ("errors", "trouble"),
    [
        ({"nvmlInit": "driver-not-loaded"}, "the NVIDIA driver does not answer: Driver Not Loaded"),
        ({"nvmlInit": "mismatch"}, "the NVIDIA driver does not answer: RM has detected"),
        (
            {"nvmlDeviceGetCount_v2": "unknown", "nvmlShutdown": "unknown"},
            "the NVIDIA driver could not describe its GPUs: Unknown",
        ),
        ({"nvmlDeviceGetName": "crash"}, "the program that asks the NVIDIA driver was killed by SIGSEGV"),
        ({"nvmlDeviceGetP2PStatus": "hang"}, "the NVIDIA driver has not answered for 1 s"),
        ({"nvmlShutdown": "unknown"}, None),  # after all is told, it does not matter
    ],
)
def test_a_driver_that_ails_is_told_of(errors: dict[str, str], trouble: str | None, here: StandIn) -> None:
    here.show(*gpus(2), errors=errors)
    told = read_box(1 if "hang" in errors.values() else PATIENCE)
    if trouble is None:
        assert (told.trouble, len(told.gpus)) == (None, 2)
        return
    assert told.gpus == ()
    assert (told.trouble or "").startswith(trouble)
    assert not [child for child in psutil.Process().children() if "gpus.reader" in " ".join(child.cmdline())]


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
    with pytest.raises(DriverTrouble, match="the memory of GPU-9 cannot be read: Not Found"):
        read_slice(("GPU-9",))
    with pytest.raises(DriverTrouble, match="the memory of GPU- cannot be read: Not Found"):
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
        ({"nvmlDeviceGetName": "hang"}, "the NVIDIA driver has not answered for 1 s"),
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
    with pytest.raises(DriverTrouble) as raised:
        read_slice(("0",), timeout=1 if "hang" in errors.values() else 60)
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
    with pytest.raises(DriverTrouble, match=rf"the memory of (GPU )?{token} cannot be read: {text}"):
        read_slice(("0", token))


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
from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus import box as told_box
from vllm_stack.gpus.driver import read_box
from vllm_stack.gpus.usage import GpuUsage, read_usage
from vllm_stack.worker.gpu_reader import read_memory
for tokens in (["0"], ["9"]):
    try:
        read_memory(tokens)
    except DriverTrouble:
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


def test_a_server_and_its_engine_run_on_the_cores_beside_their_gpu(stack: StackFactory, box: StandIn) -> None:
    first, *_, last = cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        pytest.skip("one core has no side")
    one, other = gpus(2)
    box.show(replace(one, cores=(first, first)), replace(other, cores=(last, last)))
    with stack(workers=2, device="cuda", env=box.environment) as both:
        both.up()
        for worker, core in enumerate((first, last)):
            for pid in both.tree(worker).below:
                assert psutil.Process(pid).cpu_affinity() == [core]


def test_render_refuses_more_workers_than_the_box_has_gpus(
    stack: StackFactory, box: StandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    box.show(*gpus(3))
    assert stack(workers=4, device="cuda", env=box.environment).render() == 1
    assert "Insufficient GPUs: Required 4, but only 3 are available" in capfd.readouterr().out


# What status sees.


def test_what_is_in_use_of_each_gpu_is_read_and_a_lost_one_hides_no_other(here: StandIn) -> None:
    mig = Device("MIG-1", used=GIB)
    lost = Gpu("GPU-lost", errors={"*": "lost"})
    here.show(Gpu("GPU-a", used=70 * GIB, busy=98), Gpu("GPU-b", migs=(mig,), mig_mode=True), lost)
    one, slice_, gone, missing = read_usage(["0", "MIG-1", "2", "7"], PATIENCE)
    assert one == GpuUsage("0", 70 * GIB, USABLE, 98)
    assert slice_ == GpuUsage("MIG-1", GIB, USABLE, None)
    assert (gone.memory_used, gone.trouble) == (None, "it cannot be read: GPU is lost")
    assert missing.trouble == "it cannot be read: Invalid Argument"
    here.show(errors={"nvmlInit": "hang"})
    (hung,) = read_usage(["0"], 0.5)
    assert hung.trouble == "the NVIDIA driver has not answered for 0.5 s"
    assert read_usage([], PATIENCE) == ()
