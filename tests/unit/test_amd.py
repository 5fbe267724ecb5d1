"""AMD's GPUs, as a stand-in for amdsmi tells of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.support.amd import GIB, SITE, VARIABLE, Gpu, StandIn, gpus
from vllm_stack.gpus.amd import cores_of_device, read_amd
from vllm_stack.gpus.box import GpuBox, Link

NAME = "AMD Instinct MI300X"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The package of this process's own path, imported afresh by each test."""
    sys.modules.pop("amdsmi", None)
    monkeypatch.syspath_prepend(str(SITE))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "amd.json"))
    yield StandIn(tmp_path)
    sys.modules.pop("amdsmi", None)


OPTIONAL = (
    "amdsmi_get_gpu_enumeration_info",
    "amdsmi_get_gpu_asic_info",
    "amdsmi_get_gpu_device_uuid",
    "amdsmi_get_gpu_device_bdf",
    "amdsmi_get_gpu_driver_info",
    "amdsmi_get_gpu_process_list",
    "amdsmi_get_gpu_total_ecc_count",
    "amdsmi_topo_get_numa_node_number",
    "amdsmi_topo_get_link_type",
)


def test_a_box_is_described_gpu_by_gpu(stand_in: StandIn) -> None:
    one, other = gpus(2)
    mine = (os.getpid(), 60 * GIB)
    stand_in.show(one, replace(other, used=70 * GIB, numa=1, ecc=2, processes=(mine,)))
    box = read_amd()
    assert (box.vendor, box.trouble, box.driver, box.cuda) == ("amd", None, "6.14.14", None)
    first, second = box.gpus
    assert (first.index, first.uuid, first.name) == (0, "GPU-1bad0000cafe0000", NAME)
    assert (first.memory_total, first.memory_free) == (192 * GIB, 192 * GIB)
    assert (first.numa_node, first.processes, first.warnings, first.trouble) == (0, (), (), None)
    assert (second.index, second.memory_free, second.numa_node) == (1, 122 * GIB, 1)
    (holder,) = second.processes
    assert (holder.pid, holder.memory, holder.computes) == (*mine, True)
    assert holder.user == psutil.Process().username()
    assert second.warnings[0].startswith("2 uncorrected memory errors since its driver was loaded")
    assert box.links == (Link(0, 1, "NVLINK"),)


@pytest.mark.parametrize(
    ("told", "numbers"),
    [
        ((0, 1, 2), [0, 1, 2]),
        ((2, 0, 1), [2, 0, 1]),
        # A container that may open three of eight.
        ((7, 2, 4), [2, 0, 1]),
        ((None, 0, 1), [0, 1, 2]),
        ((0, 0, 1), [0, 1, 2]),
    ],
)
def test_gpus_are_numbered_as_hip_does_where_amdsmi_tells(
    told: tuple[int | None, ...], numbers: list[int], stand_in: StandIn
) -> None:
    stand_in.show(*(Gpu(hip=hip, name=f"place {place}") for place, hip in enumerate(told)))
    box = read_amd()
    assert [gpu.index for gpu in box.gpus] == [0, 1, 2]
    assert [box.gpus[number].name for number in numbers] == ["place 0", "place 1", "place 2"]


def test_links_are_those_of_hips_numbers_and_direct_ones_only(stand_in: StandIn) -> None:
    linked = {0: 3, 3: 0, 1: 2, 2: 1}
    stand_in.show(
        *(Gpu(hip=3 - place, xgmi=(linked[place],), xgmi_far=((place + 2) % 4,)) for place in range(4))
    )
    assert read_amd().links == (Link(0, 3, "NVLINK"), Link(1, 2, "NVLINK"))


@pytest.mark.parametrize("error", ["missing", 2, 10])
def test_a_driver_that_tells_only_what_it_must_is_enough(error: int | str, stand_in: StandIn) -> None:
    """2 is not supported, 10 is not permitted."""
    shown = (replace(gpu, ecc=1, processes=((1, GIB),)) for gpu in gpus(2))
    stand_in.show(*shown, errors=dict.fromkeys(OPTIONAL, error))
    box = read_amd()
    assert (box.vendor, box.trouble, box.driver, box.links) == ("amd", None, None, ())
    for number, gpu in enumerate(box.gpus):
        assert (gpu.index, gpu.uuid, gpu.name) == (number, "", "an unknown AMD GPU")
        assert (gpu.memory_total, gpu.memory_free) == (192 * GIB, 192 * GIB)
        assert (gpu.numa_node, gpu.cores, gpu.processes, gpu.warnings) == (None, (), (), ())


@pytest.mark.parametrize(
    ("serial", "uuid"),
    [("0x00000000CAFE0000", "GPU-00000000cafe0000"), ("N/A", "a3ff74a1-0000-1000-8000-cafe00000000")],
)
def test_before_rocm_64_the_uuid_is_made_of_the_serial_number(
    serial: str, uuid: str, stand_in: StandIn
) -> None:
    stand_in.show(Gpu(serial=serial), errors={"amdsmi_get_gpu_enumeration_info": "missing"})
    assert [gpu.uuid for gpu in read_amd().gpus] == [uuid]


def test_a_gpu_that_is_broken_is_told_of_and_hides_no_other(stand_in: StandIn) -> None:
    broken, whole = gpus(2)
    stand_in.show(replace(broken, errors={"amdsmi_get_gpu_memory_total": 2}), whole)
    first, second = read_amd().gpus
    assert (first.index, first.trouble) == (0, "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported")
    assert (second.index, second.trouble, second.memory_total) == (1, None, 192 * GIB)


def test_what_a_process_holds_is_unknown_where_amdsmi_says_nothing(stand_in: StandIn) -> None:
    stand_in.show(Gpu(processes=((os.getpid(), 0),)))
    assert [process.memory for process in read_amd().gpus[0].processes] == [None]


def test_no_node_is_not_a_node(stand_in: StandIn) -> None:
    stand_in.show(Gpu(numa=-1))
    assert read_amd().gpus[0].numa_node is None


@pytest.mark.parametrize(
    ("call", "trouble"),
    [
        ("amdsmi_init", "the AMD driver does not answer: AMDSMI_STATUS_DRIVER_NOT_LOADED"),
        ("amdsmi_get_processor_handles", "the AMD driver could not describe its GPUs: AMDSMI_STATUS_DRIVER"),
        ("amdsmi_shut_down", None),  # after all is told, it does not matter
    ],
)
def test_a_driver_that_ails_is_told_of(call: str, trouble: str | None, stand_in: StandIn) -> None:
    stand_in.show(*gpus(2), errors={call: 34})
    box = read_amd()
    assert box.vendor == "amd"
    assert len(box.gpus) == (2 if trouble is None else 0)
    assert (box.trouble or "").startswith(trouble or "")
    assert "\n" not in (box.trouble or "")


def test_a_driver_without_gpus_says_so(stand_in: StandIn) -> None:
    stand_in.show()
    assert read_amd() == GpuBox((), "the AMD driver has no GPU", vendor="amd")


def test_the_driver_is_let_go_after_every_look(stand_in: StandIn) -> None:
    stand_in.show(*gpus(1))
    read_amd()
    assert sys.modules["amdsmi"]._open == 0


def test_amdsmi_without_its_library_is_no_driver(stand_in: StandIn) -> None:
    """The real package prints two lines when it is imported, and raises KeyError."""
    assert read_amd() == GpuBox((), "no AMD driver (amdsmi does not find its libamd_smi.so)")


def test_a_machine_without_amdsmi_has_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert read_amd() == GpuBox((), "no AMD driver (ROCm's Python package amdsmi is not installed here)")


@pytest.mark.parametrize(
    ("text", "cores"), [("0-2,8\n", (0, 1, 2, 8)), ("5\n", (5,)), ("\n", ()), ("0-x\n", ())]
)
def test_the_cores_beside_a_gpu_are_the_kernels(text: str, cores: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "0000:c1:00.0").mkdir()
    (tmp_path / "0000:c1:00.0" / "local_cpulist").write_text(text)
    assert cores_of_device("0000:C1:00.0", tmp_path) == cores
    assert cores_of_device("0000:c2:00.0", tmp_path) == ()
    assert cores_of_device("", tmp_path) == ()
