"""Asking the NVIDIA driver from outside: by a program of its own, in a time that has an end.

A broken driver can hang its caller for ever, or kill it, and neither may happen to ours.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.box import GpuBox
from vllm_stack.process_end import describe_end


def read_box(timeout: float = 30.0) -> GpuBox:
    """Describe all GPUs of the machine; takes about 0.2 s, and `timeout` seconds at most.

    Many GPUs without persistence mode may take half of that to wake.

    A driver that does not answer, or breaks its caller, is the `trouble` of a box without GPUs.
    """
    import msgspec

    try:
        told = ask_driver("vllm_stack.gpus.reader", (), timeout)
        return msgspec.json.decode(told, type=GpuBox)
    except DriverTrouble as trouble:
        return GpuBox((), str(trouble))
    except msgspec.MsgspecError:
        return GpuBox((), str(nonsense(told)))


def ask_driver(module: str, arguments: Sequence[str], timeout: float) -> bytes:
    """Run a program that asks the driver (`python -m MODULE ARGUMENTS`) and give what it prints.

    Raises `DriverTrouble` if it cannot be started, takes longer than `timeout` seconds, or breaks.
    """
    argv = [sys.executable, "-P", "-m", module, *arguments]
    try:
        reader = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise DriverTrouble(f"the NVIDIA driver cannot be asked: {error}") from error
    try:
        told, complaint = reader.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _abandon(reader)
        raise DriverTrouble(f"the NVIDIA driver has not answered for {timeout:g} s") from error
    except BaseException:  # Ctrl-C
        _abandon(reader)
        raise
    if reader.returncode != 0:
        last_words = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        how = describe_end(reader.returncode)
        raise DriverTrouble(
            f"the program that asks the NVIDIA driver {how}" + (f": {last_words}" if last_words else "")
        )
    return told


def nonsense(told: bytes) -> DriverTrouble:
    """Give the error for an answer that is none."""
    return DriverTrouble(f"the program that asks the NVIDIA driver said {told[:80]!r}")


def _abandon(reader: subprocess.Popen[bytes]) -> None:
    """Kill the reader, but do not wait for one that the driver holds in the kernel."""
    reader.kill()
    for pipe in (reader.stdout, reader.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        reader.wait(1)
