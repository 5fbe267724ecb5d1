"""What the driver says of a GPU's health: reasons not to use it, and reasons to look after it."""

from __future__ import annotations

from typing import Any

import pynvml

from vllm_stack.gpus.nvml import told

# NVML_FI_DEV_GET_GPU_RECOVERY_ACTION of nvml.h, for which nvidia-ml-py 12.560 has no name yet.
_RECOVERY_ACTION = 230
# The values of nvmlDeviceGpuRecoveryAction_t.
_UNUSABLE = {
    1: "needs a reset (nvidia-smi --gpu-reset)",
    2: "needs a reboot of the machine",
    3: "waits for all traffic between GPUs to stop: end what runs on them, and see what nvidia-smi -q says",
    6: "needs a reset of its bus, or a reboot of the machine",
    7: "needs a reboot of the machine",
}
_DIMINISHED = {
    4: "the driver runs it at reduced capacity: reset it when nothing runs on it (nvidia-smi --gpu-reset)",
    5: "the driver wants the IMEX domain to be recovered (NVIDIA's IMEX service guide says how)",
}
_HEAT = pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonSwThermalSlowdown
_POWER_BRAKE = pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown


def trouble_of(handle: Any) -> str | None:
    """Say why a GPU that answers cannot be used, None if it can; raises `pynvml.NVMLError`."""
    remapped = told(lambda: pynvml.nvmlDeviceGetRemappedRows(handle), None)
    if remapped and remapped[3]:
        return "a broken row of its memory could not be remapped: have the GPU replaced"
    return _UNUSABLE.get(_recovery_action(handle))


def warnings_of(handle: Any) -> tuple[str, ...]:
    """Say what a GPU can be used with, but should be looked at; raises `pynvml.NVMLError`."""
    found = (
        _memory_errors(handle),
        _waiting_rows(handle),
        _waiting_pages(handle),
        *_slow_clocks(handle),
        _DIMINISHED.get(_recovery_action(handle)),
    )
    return tuple(warning for warning in found if warning)


def _recovery_action(handle: Any) -> int:
    """Give what the driver wants to be done, 0 for nothing and where it is not told."""
    values: list[Any] = told(lambda: list(pynvml.nvmlDeviceGetFieldValues(handle, [_RECOVERY_ACTION])), [])
    for value in values:
        if value.nvmlReturn == pynvml.NVML_SUCCESS:
            return int(value.value.uiVal)
    return 0


def _memory_errors(handle: Any) -> str | None:
    count = told(
        lambda: pynvml.nvmlDeviceGetTotalEccErrors(
            handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
        ),
        0,
    )
    if not count:
        return None
    return (
        f"{count} uncorrected memory error{'s' if count > 1 else ''} since its driver was loaded: "
        "reset it, and have it replaced if they come back"
    )


def _waiting_rows(handle: Any) -> str | None:
    remapped = told(lambda: pynvml.nvmlDeviceGetRemappedRows(handle), None)
    if not remapped or not remapped[2]:
        return None
    return (
        "rows of its memory wait to be remapped "
        f"({remapped[1]} for uncorrectable errors so far): reset it when nothing runs on it"
    )


def _waiting_pages(handle: Any) -> str | None:
    pending = told(lambda: pynvml.nvmlDeviceGetRetiredPagesPendingStatus(handle), 0)
    if pending != pynvml.NVML_FEATURE_ENABLED:
        return None
    return "pages of its memory wait to be retired: reset it when nothing runs on it"


def _slow_clocks(handle: Any) -> tuple[str, ...]:
    """Drivers before 535 know the call by the older of its names."""
    reasons = told(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle), None)
    if reasons is None:
        reasons = told(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle), 0)
    found = []
    if reasons & _HEAT:
        degrees = told(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU), None)
        hot = "" if degrees is None else f" ({degrees} degrees Celsius)"
        found.append(f"its clocks are held down by heat{hot}: look at its cooling")
    if reasons & _POWER_BRAKE:
        found.append("its clocks are held down by the power brake: look at the power supply")
    return tuple(found)
