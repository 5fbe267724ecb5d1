"""The memory of a worker's GPUs before vLLM starts: how much is free, who holds the rest, is it enough.

vLLM looks once, when its engine starts, and ends if less is free than it asks for. Memory of a
process that was killed comes back seconds later, and other programs come and go, so the wrapper
looks first. The driver is asked by a process of its own (`gpu_reader`): a broken driver can hang
its caller for ever, or kill it, and neither may happen to the wrapper.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.driver import ask_driver, nonsense

_GIB = 1024**3
# How many of a GPU's holders one line names.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU; `bytes` is None where the driver does not tell."""

    pid: int
    bytes: int | None
    who: str


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of one GPU or MIG device, in bytes.

    `total` is what programs can have: what the driver keeps for itself is not counted, as in
    CUDA's own figures. `token` is its word in CUDA_VISIBLE_DEVICES.
    """

    token: str
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...] = ()


def read_slice(tokens: Sequence[str], timeout: float = 20.0) -> tuple[GpuMemory, ...]:
    """Read the memory of the GPUs that CUDA_VISIBLE_DEVICES names by `tokens`, in their order.

    Takes about 0.2 s, and `timeout` seconds at most. Raises `DriverTrouble` if any of them
    cannot be read: then nobody can say what vLLM will find, and vLLM itself should.
    """
    if not tokens:
        return ()
    answer = _answer(ask_driver("vllm_stack.worker.gpu_reader", tokens, timeout))
    if "trouble" in answer:
        raise DriverTrouble(answer["trouble"])
    return tuple(
        GpuMemory(**{**gpu, "holders": tuple(Holder(**holder) for holder in gpu["holders"])})
        for gpu in answer["gpus"]
    )


def _answer(told: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(told))
    except ValueError as error:
        raise nonsense(told) from error


def occupied(gpus: Sequence[GpuMemory], share: float) -> tuple[GpuMemory, ...]:
    """Give those GPUs that have less free memory than vLLM will ask for.

    vLLM compares the same figures, a little later: its own CUDA context (0.5 GiB, more with NCCL)
    then counts as in use. A GPU that passes here by less than that is still refused by vLLM.
    """
    return tuple(gpu for gpu in gpus if gpu.free < _asked(gpu, share))


def _asked(gpu: GpuMemory, share: float) -> int:
    return math.ceil(gpu.total * share)


def describe(gpu: GpuMemory, share: float) -> str:
    """Say in one line how much is free, how much vLLM asks for, and who holds the rest."""
    return (
        f"{label(gpu.token)} ({gpu.name}) has {_gib(gpu.free)} of {_gib(gpu.total)} GiB free, "
        f"vLLM asks for {_gib(_asked(gpu, share))}; {_describe_holders(gpu.holders)}"
    )


def label(token: str) -> str:
    """Name a GPU by its word in CUDA_VISIBLE_DEVICES."""
    return token if token.startswith(("GPU-", "MIG-")) else f"GPU {token}"


def _describe_holders(holders: Sequence[Holder]) -> str:
    if not holders:
        return "the driver names no process that holds it"
    largest = sorted(holders, key=lambda holder: -(holder.bytes or 0))
    named = [_describe_holder(holder) for holder in largest[:_NAMED]]
    rest = len(holders) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _describe_holder(holder: Holder) -> str:
    amount = "what the driver does not tell" if holder.bytes is None else f"{_gib(holder.bytes)} GiB"
    return f"process {holder.pid} ({holder.who}) holds {amount}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}"
