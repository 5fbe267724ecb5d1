"""Ask the driver for all GPUs of the machine: `python -m vllm_stack.gpus.reader`.

NVIDIA's is asked, and AMD's only where there is none. Prints one JSON object, a `GpuBox`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import replace
from typing import Any

import msgspec
import pynvml

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.amd import read_amd
from vllm_stack.gpus.box import ComputeMode, Gpu, GpuBox, MigDevice
from vllm_stack.gpus.health import trouble_of, warnings_of
from vllm_stack.gpus.nvml import name_of, processes_on, refused_as, session, told, total_and_free, uuid_of
from vllm_stack.gpus.topology import cores_beside, links_between, numa_node
from vllm_stack.program import die_with_parent

_COMPUTE_MODES: dict[int, ComputeMode] = {
    pynvml.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_THREAD: "exclusive",
    pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS: "exclusive",
}
# What NVML says where there may be GPUs of another make.
_NO_DRIVER = (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)


def read_gpus() -> GpuBox:
    """Describe every GPU in this process; one that cannot be described says so and hides no other."""
    try:
        with session(), refused_as("the NVIDIA driver could not describe its GPUs"):
            return _read_box()
    except DriverTrouble as trouble:
        if not isinstance(trouble.__cause__, _NO_DRIVER):
            return GpuBox((), str(trouble))
        box = read_amd()
        return replace(box, trouble=f"{trouble}, and {box.trouble}") if box.trouble else box


def _read_box() -> GpuBox:
    handles: dict[int, Any] = {}
    gpus = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handles[index] = pynvml.nvmlDeviceGetHandleByIndex(index)
        except pynvml.NVMLError as error:
            gpus.append(replace(_unknown(index), trouble=str(error)))
        else:
            gpus.append(_read_gpu(index, handles[index]))
    return GpuBox(
        gpus=tuple(gpus),
        driver=told(lambda: str(pynvml.nvmlSystemGetDriverVersion()), None),
        cuda=told(_cuda_version, None),
        links=links_between(handles),
    )


def _unknown(index: int) -> Gpu:
    return Gpu(index=index, uuid="", name="an unknown GPU", memory_total=0, memory_free=0)


def _cuda_version() -> tuple[int, int]:
    """The driver says 13010 for 13.1."""
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return version // 1000, version % 1000 // 10


def _read_gpu(index: int, handle: Any) -> Gpu:
    """Describe one GPU, or as much of it as it still tells with the reason why it is no more."""
    gpu = _unknown(index)
    try:
        gpu = replace(gpu, uuid=uuid_of(handle), name=name_of(handle))
        gpu = replace(gpu, bus_id=told(lambda: str(pynvml.nvmlDeviceGetPciInfo(handle).busId), ""))
        return _describe(gpu, handle)
    except pynvml.NVMLError as error:
        return replace(gpu, trouble=str(error))


def _describe(gpu: Gpu, handle: Any) -> Gpu:
    total, free = total_and_free(handle)
    mode = told(lambda: pynvml.nvmlDeviceGetComputeMode(handle), pynvml.NVML_COMPUTEMODE_DEFAULT)
    mig = told(lambda: pynvml.nvmlDeviceGetMigMode(handle)[0], 0) == pynvml.NVML_DEVICE_MIG_ENABLE
    return replace(
        gpu,
        memory_total=total,
        memory_free=free,
        capability=told(lambda: pynvml.nvmlDeviceGetCudaComputeCapability(handle), None),
        compute_mode=_COMPUTE_MODES.get(mode, "default"),
        numa_node=numa_node(handle, gpu.bus_id),
        cores=cores_beside(handle),
        processes=processes_on(handle),
        mig_enabled=mig,
        migs=_mig_devices(handle) if mig else (),
        trouble=trouble_of(handle),
        warnings=warnings_of(handle),
    )


def _mig_devices(handle: Any) -> tuple[MigDevice, ...]:
    """Describe the slices of a GPU; one that is being taken apart just now is left out."""
    devices = []
    for place in range(told(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle), 0)):
        with contextlib.suppress(pynvml.NVMLError):  # a place where none is
            device = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            devices.append(
                MigDevice(uuid_of(device), name_of(device), *total_and_free(device), processes_on(device))
            )
    return tuple(devices)


def main() -> int:
    """Print the box; gives the exit code."""
    die_with_parent(signal.SIGKILL)
    # amdsmi and its library print what is not meant for us: it goes where complaints go.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        answer.write(msgspec.json.encode(read_gpus()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
