"""A GPU or MIG device that a worker might get: what speaks against it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vllm_stack.gpus.box import Gpu, GpuBox, GpuProcess, MigDevice
from vllm_stack.gpus.mask import find

NO_MIG_DEVICE = "MIG is enabled on it, but it has no MIG device (nvidia-smi mig -cgi creates one)"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A GPU or MIG device that may be given away.

    `trouble` says why it cannot be used. `memory` is free and total bytes, None where nobody can tell what
    vLLM will find. `holders` are the processes in the way, largest first.
    """

    place: int
    token: str
    gpu: Gpu | None
    mig: MigDevice | None = None
    is_mig: bool = False
    trouble: str | None = None
    busy: bool = False
    memory: tuple[int, int] | None = None
    holders: tuple[GpuProcess, ...] = ()

    @property
    def identity(self) -> str:
        """The same for two words that name the same GPU."""
        if self.mig is not None:
            return self.mig.uuid
        return self.token if self.gpu is None or self.token.startswith("MIG-") else str(self.gpu.index)

    @property
    def model(self) -> tuple[str | None, str | None]:
        return (self.gpu.name if self.gpu else None, self.mig.name if self.mig else None)

    @property
    def memory_total(self) -> int | None:
        """What it has in all; None for a MIG device that the driver does not tell."""
        part = self.mig or (None if self.is_mig else self.gpu)
        return part.memory_total if part else None

    @property
    def label(self) -> str:
        """What messages call it."""
        name = self.identity
        if name.isdigit():
            return f"GPU {name}"
        return f"MIG device {name} of GPU {self.gpu.index}" if self.gpu else name


def judge(place: int, token: str, box: GpuBox, share: float, own_title: str) -> Candidate:
    """Find what a word of CUDA_VISIBLE_DEVICES stands for, and whether vLLM could start there."""
    if box.trouble:
        return Candidate(place, token, None, is_mig=token.startswith("MIG-"))
    named = find(token, box)
    if named is None:
        trouble = "it is not on this machine, or the UUID fits several"
        return Candidate(place, token, None, is_mig=token.startswith("MIG-"), trouble=trouble)
    gpu, mig = named.gpu, named.mig
    # Of a MIG device that the driver does not tell, nothing is known; its GPU's figures are not its own.
    part = mig or (None if named.is_mig else gpu)
    memory = _memory_at_start(part, own_title) if part else None
    # vLLM refuses to start then: `request_memory` in vllm/v1/worker/utils.py.
    short = memory is not None and memory[0] < math.ceil(memory[1] * share)
    foreign = [one for one in (part.processes if part else ()) if not one.command.startswith(own_title)]
    computing = [process for process in foreign if process.computes]
    return Candidate(
        place=place,
        token=named.token,
        gpu=gpu,
        mig=mig,
        is_mig=named.is_mig,
        trouble=_trouble(gpu, token),
        busy=bool(computing) or short,
        memory=memory,
        # Who only draws is in the way only of memory.
        holders=tuple(sorted(foreign if short else computing, key=lambda one: -(one.memory or 0))),
    )


def _memory_at_start(part: Gpu | MigDevice, own_title: str) -> tuple[int, int] | None:
    """Give the free and total bytes that vLLM will find; None if the driver does not tell enough.

    What our own processes hold is free by the time they start again.
    """
    free = part.memory_free
    for process in part.processes:
        if process.command.startswith(own_title):
            if process.memory is None:
                return None
            free += process.memory
    return free, part.memory_total


def _trouble(gpu: Gpu, token: str) -> str | None:
    if gpu.trouble is not None:
        return gpu.trouble
    if gpu.compute_mode == "prohibited":
        return f"its compute mode is prohibited (nvidia-smi -i {gpu.index} -c DEFAULT changes it)"
    if gpu.mig_enabled and not gpu.migs and not token.startswith("MIG-"):
        return NO_MIG_DEVICE
    return None
