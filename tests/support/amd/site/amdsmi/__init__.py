"""A stand-in for amdsmi 7.0.2: its calls as far as they are made, on a box that a file describes."""

from __future__ import annotations

import json
import os
from enum import IntEnum

try:
    with open(os.environ["AMDSMI_STAND_IN"], encoding="utf-8") as file:
        _box = json.load(file)
except OSError as error:
    # So does the real one where the driver's library is missing.
    print(error)
    print("Unable to find libamd_smi.so library try installing amd-smi-lib from your package manager")
    raise KeyError("libamd_smi.so") from error

_WORDS = {
    2: "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported",
    10: "AMDSMI_STATUS_NO_PERM - Permission Denied",
    34: "AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded",
}
_UNKNOWN = 0xFFFFFFFF
_open = 0


class AmdSmiException(Exception):
    pass


class AmdSmiLibraryException(AmdSmiException):
    def __init__(self, err_code):
        super().__init__(err_code)
        self.err_code = err_code
        self.err_info = _WORDS.get(err_code, "AMDSMI_STATUS_UNKNOWN_ERROR - An unknown error occurred")

    def __str__(self):
        return f"Error code:\n\t{self.err_code} | {self.err_info}"


class AmdSmiMemoryType(IntEnum):
    VRAM = 0
    VIS_VRAM = 1
    GTT = 2


def _check(call, gpu=None):
    if call != "amdsmi_init" and not _open:
        raise AmdSmiLibraryException(32)
    code = {**_box["errors"], **(gpu["errors"] if gpu else {})}.get(call)
    if code is not None:
        raise AmdSmiLibraryException(code)


def amdsmi_init(flag=2):
    global _open
    _check("amdsmi_init")
    _open += 1
    print("the library may print what it likes")


def amdsmi_shut_down():
    global _open
    _check("amdsmi_shut_down")
    _open -= 1


def amdsmi_get_processor_handles():
    _check("amdsmi_get_processor_handles")
    return list(_box["gpus"])


def amdsmi_get_gpu_enumeration_info(processor_handle):
    _check("amdsmi_get_gpu_enumeration_info", processor_handle)
    hip = processor_handle["hip"]
    return {
        "drm_render": 128,
        "drm_card": 0,
        "hsa_id": 2,
        "hip_id": "N/A" if hip is None else hip,
        "hip_uuid": "GPU-" + processor_handle["serial"][2:].lower(),
    }


def amdsmi_get_gpu_asic_info(processor_handle):
    _check("amdsmi_get_gpu_asic_info", processor_handle)
    return {
        "market_name": processor_handle["name"],
        "vendor_id": "0x1002",
        "vendor_name": "Advanced Micro Devices Inc. [AMD/ATI]",
        "device_id": "0x74a1",
        "asic_serial": processor_handle["serial"],
        "oam_id": "N/A",
        "target_graphics_version": "gfx942",
    }


def amdsmi_get_gpu_device_uuid(processor_handle):
    _check("amdsmi_get_gpu_device_uuid", processor_handle)
    return "a3ff74a1-0000-1000-8000-cafe00000000"


def amdsmi_get_gpu_device_bdf(processor_handle):
    _check("amdsmi_get_gpu_device_bdf", processor_handle)
    return processor_handle["bdf"]


def amdsmi_get_gpu_driver_info(processor_handle):
    _check("amdsmi_get_gpu_driver_info", processor_handle)
    return {"driver_name": "amdgpu", "driver_version": "6.14.14", "driver_date": "N/A"}


def amdsmi_get_gpu_memory_total(processor_handle, mem_type):
    assert isinstance(mem_type, AmdSmiMemoryType)
    _check("amdsmi_get_gpu_memory_total", processor_handle)
    return processor_handle["total"]


def amdsmi_get_gpu_memory_usage(processor_handle, mem_type):
    assert isinstance(mem_type, AmdSmiMemoryType)
    _check("amdsmi_get_gpu_memory_usage", processor_handle)
    return processor_handle["used"]


def amdsmi_get_gpu_process_list(processor_handle):
    _check("amdsmi_get_gpu_process_list", processor_handle)
    return [
        {
            "name": "N/A",
            "pid": pid,
            "mem": size,
            "engine_usage": {"gfx": 0, "enc": 0},
            "memory_usage": {"gtt_mem": 0, "cpu_mem": 0, "vram_mem": size},
            "cu_occupancy": "N/A",
        }
        for pid, size in processor_handle["processes"]
    ]


def amdsmi_get_gpu_total_ecc_count(processor_handle):
    _check("amdsmi_get_gpu_total_ecc_count", processor_handle)
    return {"correctable_count": 7, "uncorrectable_count": processor_handle["ecc"], "deferred_count": 0}


def amdsmi_topo_get_numa_node_number(processor_handle):
    _check("amdsmi_topo_get_numa_node_number", processor_handle)
    return processor_handle["numa"] if processor_handle["numa"] >= 0 else _UNKNOWN


def amdsmi_topo_get_link_type(processor_handle_src, processor_handle_dst):
    _check("amdsmi_topo_get_link_type", processor_handle_src)
    place = _box["gpus"].index(processor_handle_dst)
    if place in processor_handle_src["xgmi_far"]:
        return {"hops": 2, "type": 2}
    return {"hops": 1, "type": 2} if place in processor_handle_src["xgmi"] else {"hops": 1, "type": 1}


for _name, _how in _box["errors"].items():
    if _how == "missing":
        del globals()[_name]
