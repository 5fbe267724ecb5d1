"""Where a GPU sits in the machine: its NUMA node, the CPU cores beside it, its ways to other GPUs."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pynvml

from vllm_stack.gpus.box import Link, Way
from vllm_stack.gpus.nvml import told

_DEVICES = Path("/sys/bus/pci/devices")
_NODES = Path("/sys/devices/system/node")
# nvmlGpuTopologyLevel_t of nvml.h: two GPUs on one board, behind one PCIe switch, behind several, on
# one host bridge, on one NUMA node, in one machine.
_WAYS: Mapping[int, Way] = {0: "PIX", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}


def numa_node(handle: Any, bus_id: str) -> int | None:
    """Give the NUMA node of the CPU cores beside a GPU, None if nobody tells.

    NVML names a node of the GPU's own where its memory is one (GB200), which has no cores; vLLM
    passes over that one, too (`get_device_numa_node` in vllm/platforms/cuda.py).
    """
    node = told(lambda: int(pynvml.nvmlDeviceGetNumaNodeId(handle)), None)
    if node is None or node < 0 or has_no_cores(node):
        return node_of_device(bus_id)
    return node


def has_no_cores(node: int, nodes: Path = _NODES) -> bool:
    """Tell whether the system knows this NUMA node as one without CPU cores."""
    try:
        return not (nodes / f"node{node}" / "cpulist").read_text("ascii").strip()
    except OSError:
        return False


def node_of_device(bus_id: str, devices: Path = _DEVICES) -> int | None:
    """Give the NUMA node of a PCI device as the kernel has it; it says -1 where it has none."""
    domain, colon, rest = bus_id.lower().partition(":")
    with contextlib.suppress(OSError, ValueError):
        # NVML writes the domain with eight digits, the kernel with four.
        node = int((devices / f"{int(domain, 16):04x}{colon}{rest}" / "numa_node").read_text("ascii"))
        return node if node >= 0 else None
    return None


def cores_beside(handle: Any) -> tuple[int, ...]:
    """Give the CPU cores next to a GPU, none where the driver does not tell."""
    words = (os.sysconf("SC_NPROCESSORS_CONF") + 63) // 64
    masks: list[int] = told(lambda: list(pynvml.nvmlDeviceGetCpuAffinity(handle, words)), [])
    return tuple(64 * word + bit for word, mask in enumerate(masks) for bit in range(64) if mask >> bit & 1)


def links_between(handles: Mapping[int, Any]) -> tuple[Link, ...]:
    """Give the ways between the GPUs with these indices, as far as the driver tells them."""
    pairs = itertools.combinations(sorted(handles), 2)
    ways = ((one, other, _way(handles[one], handles[other])) for one, other in pairs)
    return tuple(Link(one, other, way) for one, other, way in ways if way is not None)


def _way(one: Any, other: Any) -> Way | None:
    """NVLink is what vLLM asks for (`is_fully_connected` in vllm/platforms/cuda.py)."""
    with contextlib.suppress(pynvml.NVMLError):
        if (
            pynvml.nvmlDeviceGetP2PStatus(one, other, pynvml.NVML_P2P_CAPS_INDEX_NVLINK)
            == pynvml.NVML_P2P_STATUS_OK
        ):
            return "NVLINK"
    with contextlib.suppress(pynvml.NVMLError):
        return _WAYS.get(pynvml.nvmlDeviceGetTopologyCommonAncestor(one, other))
    return None
