"""A machine's GPUs as values: what the driver told of them, whatever CUDA_VISIBLE_DEVICES says.

NVIDIA's and AMD's are told in the same words, which are NVIDIA's: "NVLINK" is the vendor's direct link
between two GPUs, and so AMD's XGMI as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Vendor = Literal["nvidia", "amd"]
ComputeMode = Literal["default", "exclusive", "prohibited"]
# How two GPUs reach each other, best first: by the vendor's direct link (NVLink, XGMI), or as
# `nvidia-smi topo -m` says it.
Way = Literal["NVLINK", "PIX", "PXB", "PHB", "NODE", "SYS"]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process on a GPU; `memory` in bytes, None where the driver does not tell.

    `user` is None where the process cannot be seen: in a container, or no longer there. `command` is
    one printable line. `computes` is False for one that only draws (a desktop).
    """

    pid: int
    user: str | None
    command: str
    memory: int | None
    computes: bool = True


@dataclass(frozen=True, slots=True)
class MigDevice:
    """A slice of a GPU that CUDA takes for a GPU; sizes in bytes."""

    uuid: str
    name: str
    memory_total: int
    memory_free: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its vendor numbers it (NVML: PCI bus order; AMD: the order of HIP); sizes in bytes.

    `memory_total` is what programs can have, as CUDA counts it. `trouble` says why the GPU cannot be
    used; `warnings` are what it can be used with, but should be looked at (memory errors, throttled clocks).
    `cores` are the CPU cores next to it, none where the system does not tell.
    """

    index: int
    uuid: str
    name: str
    memory_total: int
    memory_free: int
    capability: tuple[int, int] | None = None
    compute_mode: ComputeMode = "default"
    bus_id: str = ""
    numa_node: int | None = None
    cores: tuple[int, ...] = ()
    processes: tuple[GpuProcess, ...] = ()
    mig_enabled: bool = False
    migs: tuple[MigDevice, ...] = ()
    trouble: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """How the GPUs with the indices `one` < `other` reach each other."""

    one: int
    other: int
    way: Way


@dataclass(frozen=True, slots=True)
class GpuBox:
    """All GPUs of the machine, or in `trouble` the sentence that says why none can be seen."""

    gpus: tuple[Gpu, ...]
    trouble: str | None = None
    driver: str | None = None
    # The newest CUDA that the driver serves.
    cuda: tuple[int, int] | None = None
    links: tuple[Link, ...] = ()
    vendor: Vendor = "nvidia"

    def way(self, one: int, other: int) -> Way | None:
        """Tell how two GPUs reach each other; None where the driver does not."""
        pair = (min(one, other), max(one, other))
        return next((link.way for link in self.links if (link.one, link.other) == pair), None)
