"""Asking AMD's driver, through the Python package amdsmi that comes with ROCm.

It is no dependency: it fits only the ROCm that it came with, and is looked for where our own packages
are. It loads the driver's library, so only a program of its own asks (`gpus.reader`).
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.box import Gpu, GpuBox, GpuProcess, Link
from vllm_stack.gpus.nvml import who_runs_what
from vllm_stack.gpus.topology import node_of_device

T = TypeVar("T")
_DEVICES = Path("/sys/bus/pci/devices")
# What amdsmi_topo_get_link_type says for XGMI: 2 from ROCm 6.0 to 7.0, while the enumerations that name it
# changed. `is_fully_connected` in vllm/platforms/rocm.py has the number, too.
_XGMI = 2
# What a node is that the driver does not know.
_NO_NODE = 0xFFFF
_HIP_UUID = re.compile(r"(?:GPU-)?(?:0x)?([0-9a-fA-F]{1,16})")


def read_amd() -> GpuBox:
    """Describe every AMD GPU in this process, with the number that HIP gives it where no mask is set.

    A box without GPUs says in `trouble` why; its vendor is "amd" if at least amdsmi is there. A GPU that
    cannot be described says so and hides no other.
    """
    try:
        smi = _load()
    except DriverTrouble as trouble:
        return GpuBox((), str(trouble))
    try:
        with _session(smi):
            return _read_box(smi)
    except DriverTrouble as trouble:
        return GpuBox((), str(trouble), vendor="amd")


def _load() -> Any:
    try:
        return importlib.import_module("amdsmi")
    except ImportError as error:
        raise DriverTrouble("no AMD driver (ROCm's Python package amdsmi is not installed here)") from error
    except (LookupError, AttributeError, OSError) as error:  # how it ends where its library is missing
        raise DriverTrouble("no AMD driver (amdsmi does not find its libamd_smi.so)") from error


@contextlib.contextmanager
def _session(smi: Any) -> Iterator[None]:
    """Keep the driver open; what it refuses in here is raised as `DriverTrouble`."""
    try:
        smi.amdsmi_init()
    except smi.AmdSmiException as error:
        raise DriverTrouble(f"the AMD driver does not answer: {_reason(error)}") from error
    try:
        yield
    except smi.AmdSmiException as error:
        raise DriverTrouble(f"the AMD driver could not describe its GPUs: {_reason(error)}") from error
    finally:
        with contextlib.suppress(smi.AmdSmiException):
            smi.amdsmi_shut_down()


def _reason(error: Exception) -> str:
    """Give in one line what amdsmi says in several."""
    return " ".join(str(getattr(error, "err_info", "") or error).split()) or type(error).__name__


def _read_box(smi: Any) -> GpuBox:
    handles = list(smi.amdsmi_get_processor_handles())
    if not handles:
        raise DriverTrouble("the AMD driver has no GPU")
    numbered = dict(zip(_hip_order(smi, handles), handles, strict=True))
    return GpuBox(
        gpus=tuple(_read_gpu(smi, index, numbered[index]) for index in sorted(numbered)),
        driver=_told(smi, lambda: _word(smi.amdsmi_get_gpu_driver_info(handles[0])["driver_version"]), None),
        links=_links_between(smi, numbered),
        vendor="amd",
    )


def _told(smi: Any, ask: Callable[[], T], otherwise: T) -> T:
    """Give what amdsmi answers, or `otherwise` where it does not tell.

    Older releases lack calls and keys, some GPUs lack facts, containers lack permissions, and the package
    converts what it is told without looking ("N/A" to a number).
    """
    try:
        return ask()
    except (smi.AmdSmiException, AttributeError, LookupError, TypeError, ValueError):
        return otherwise


def _hip_order(smi: Any, handles: Sequence[Any]) -> list[int]:
    """Give the number that HIP has for each handle.

    amdsmi tells it as `hip_id` from ROCm 6.4 on, but as the number of the kernel's node less that of the
    first, which has gaps where HIP has none. Where it is not told, the order of the handles has to do.
    """
    known = [number for handle in handles if (number := _hip_id(smi, handle)) is not None]
    if len(set(known)) != len(handles):
        return list(range(len(handles)))
    order = sorted(known)
    return [order.index(number) for number in known]


def _hip_id(smi: Any, handle: Any) -> int | None:
    return _told(smi, lambda: int(smi.amdsmi_get_gpu_enumeration_info(handle)["hip_id"]), None)


def _read_gpu(smi: Any, index: int, handle: Any) -> Gpu:
    """Describe one GPU, or as much of it as it still tells with the reason why it is no more."""
    asic: Mapping[str, Any] = _told(smi, lambda: dict(smi.amdsmi_get_gpu_asic_info(handle)), {})
    gpu = Gpu(
        index=index,
        uuid=_uuid(smi, handle, asic),
        name=_word(asic.get("market_name")) or "an unknown AMD GPU",
        memory_total=0,
        memory_free=0,
        bus_id=_told(smi, lambda: str(smi.amdsmi_get_gpu_device_bdf(handle)), ""),
    )
    try:
        total = int(smi.amdsmi_get_gpu_memory_total(handle, smi.AmdSmiMemoryType.VRAM))
        used = int(smi.amdsmi_get_gpu_memory_usage(handle, smi.AmdSmiMemoryType.VRAM))
    except smi.AmdSmiException as error:
        return replace(gpu, trouble=_reason(error))
    return replace(
        gpu,
        memory_total=total,
        memory_free=max(0, total - used),
        numa_node=_numa_node(smi, handle, gpu.bus_id),
        cores=cores_of_device(gpu.bus_id),
        processes=_told(smi, lambda: tuple(map(_process, smi.amdsmi_get_gpu_process_list(handle))), ()),
        warnings=_warnings(smi, handle),
    )


def _word(value: object) -> str | None:
    """amdsmi writes "N/A" for what it does not know."""
    return value if isinstance(value, str) and value not in ("", "N/A") else None


def _uuid(smi: Any, handle: Any, asic: Mapping[str, Any]) -> str:
    """Give the UUID as HIP and ROCr write it: from ROCm 6.4 on told as such, before as the serial number."""
    hip = _told(smi, lambda: str(smi.amdsmi_get_gpu_enumeration_info(handle)["hip_uuid"]), "")
    for word in (hip, str(asic.get("asic_serial", ""))):
        digits = _HIP_UUID.fullmatch(word)
        if digits and int(digits[1], 16):
            return f"GPU-{int(digits[1], 16):016x}"
    return _told(smi, lambda: str(smi.amdsmi_get_gpu_device_uuid(handle)), "")


def _process(told: Mapping[str, Any]) -> GpuProcess:
    """amdsmi lists those that compute, and says 0 bytes of one that it may not look into."""
    pid = int(told["pid"])
    held = told.get("memory_usage", {}).get("vram_mem") or told.get("mem")
    return GpuProcess(pid, *who_runs_what(pid), held if isinstance(held, int) and held > 0 else None)


def _warnings(smi: Any, handle: Any) -> tuple[str, ...]:
    count = _told(smi, lambda: int(smi.amdsmi_get_gpu_total_ecc_count(handle)["uncorrectable_count"]), 0)
    if count <= 0:
        return ()
    return (
        f"{count} uncorrected memory error{'s' if count > 1 else ''} since its driver was loaded: "
        "reset it (amd-smi reset --gpureset), and have it replaced if they come back",
    )


def _numa_node(smi: Any, handle: Any, bus_id: str) -> int | None:
    node = _told(smi, lambda: int(smi.amdsmi_topo_get_numa_node_number(handle)), None)
    return node if node is not None and 0 <= node < _NO_NODE else node_of_device(bus_id)


def cores_of_device(bus_id: str, devices: Path = _DEVICES) -> tuple[int, ...]:
    """Give the CPU cores next to a PCI device as the kernel has them ("0-3,8"); none where it does not tell.

    amdsmi tells them only after its CPU side has been opened, which needs a driver that few have.
    """
    try:
        ranges = (devices / bus_id.lower() / "local_cpulist").read_text("ascii").strip().split(",")
        ends = [tuple(map(int, part.split("-"))) for part in ranges]
    except (OSError, ValueError):
        return ()
    return tuple(core for first, *last in ends for core in range(first, (last or [first])[0] + 1))


def _links_between(smi: Any, handles: Mapping[int, Any]) -> tuple[Link, ...]:
    pairs = itertools.combinations(sorted(handles), 2)
    return tuple(
        Link(one, other, "NVLINK") for one, other in pairs if _joined(smi, handles[one], handles[other])
    )


def _joined(smi: Any, one: Any, other: Any) -> bool:
    """Tell whether two GPUs are joined by XGMI without a third between them, which is what vLLM asks for."""
    link: Mapping[str, Any] = _told(smi, lambda: dict(smi.amdsmi_topo_get_link_type(one, other)), {})
    return link.get("type") == _XGMI and link.get("hops") == 1
