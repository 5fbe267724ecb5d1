"""Where a GPU sits, as the kernel has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.gpus.topology import has_no_cores, node_of_device


@pytest.mark.parametrize(
    ("told", "node"), [("1\n", 1), ("0\n", 0), ("-1\n", None), ("\n", None), ("one", None)]
)
def test_the_kernel_tells_the_node_of_a_device(told: str, node: int | None, tmp_path: Path) -> None:
    (tmp_path / "0000:3b:00.0").mkdir()
    (tmp_path / "0000:3b:00.0" / "numa_node").write_text(told)
    assert node_of_device("00000000:3B:00.0", tmp_path) == node


def test_a_pci_domain_keeps_the_digits_that_it_needs(tmp_path: Path) -> None:
    (tmp_path / "10000:01:00.0").mkdir()
    (tmp_path / "10000:01:00.0" / "numa_node").write_text("3")
    assert node_of_device("00010000:01:00.0", tmp_path) == 3


@pytest.mark.parametrize("bus_id", ["", "00000000:01:00.0", "nothing:01:00.0", "../../x"])
def test_a_device_that_is_not_there_has_no_node(bus_id: str, tmp_path: Path) -> None:
    assert node_of_device(bus_id, tmp_path) is None


def test_a_node_that_is_the_memory_of_a_gpu_has_no_cores(tmp_path: Path) -> None:
    """As on a GB200; a node that nobody knows is believed."""
    for node, cores in ((0, "0-71\n"), (2, "\n")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cores)
    assert [has_no_cores(node, tmp_path) for node in (0, 1, 2)] == [False, False, True]
