"""Why workers cannot have their GPUs, naming what is in the way and who."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_stack.errors import GpuBusy, InsufficientGpus
from vllm_stack.gpus.box import GpuBox, GpuProcess
from vllm_stack.gpus.candidate import NO_MIG_DEVICE, Candidate
from vllm_stack.sizes import gib

# How many GPUs one message names, how many holders of each, and how many letters of their commands.
_NAMED = 3
_SHOWN = 80


def too_few(needed: int, candidates: Sequence[Candidate], why: str) -> InsufficientGpus:
    """Say that there are too few at all, with what is the matter with the others."""
    available = sum(candidate.trouble is None for candidate in candidates)
    reasons = "; ".join(filter(None, (_troubles(candidates), why)))
    return InsufficientGpus(
        f"Insufficient GPUs: Required {needed}, but only {available} are available. "
        "Please adjust '--tensor-parallel-size' or '--workers'" + (f" ({reasons})" if reasons else "")
    )


def unusable(candidates: Sequence[Candidate]) -> InsufficientGpus:
    """Say what is the matter with those that the user named."""
    return InsufficientGpus(f"{_troubles(candidates)}: name other GPUs with --gpus")


def _troubles(candidates: Sequence[Candidate]) -> str:
    return _listed([f"{one.label} cannot be used: {one.trouble}" for one in candidates if one.trouble])


def empty_mig(box: GpuBox) -> str:
    """Say which GPUs no token stands for, although they are there."""
    empty = [gpu for gpu in box.gpus if gpu.mig_enabled and not gpu.migs]
    return _listed([f"GPU {gpu.index} cannot be used: {NO_MIG_DEVICE}" for gpu in empty])


def in_use(needed: int, free: int, busy: Sequence[Candidate]) -> GpuBusy:
    """Say who uses them, those with the largest processes first."""
    worst_first = sorted(
        busy, key=lambda one: max((holder.memory or 0 for holder in one.holders), default=0), reverse=True
    )
    used = _listed([_holding(one) for one in worst_first])
    return GpuBusy(
        f"Not enough free GPUs ({needed} needed, {free} free): {used}; end what runs there, "
        "name other GPUs with --gpus, ask for fewer --workers, or pass --allow-busy"
    )


def _holding(candidate: Candidate) -> str:
    """Say who computes on a GPU, or how much of its memory is free if that is the matter."""
    who = _listed([_who(process) for process in candidate.holders], ", ")
    if candidate.memory is None or any(process.computes for process in candidate.holders):
        return f"{candidate.label} is used by {who}"
    free, total = candidate.memory
    by = f"used by {who}" if who else "and no process is seen that holds the rest"
    return f"{candidate.label} has only {gib(free)} of {gib(total)} free, {by}"


def _who(process: GpuProcess) -> str:
    command = process.command[:_SHOWN].rstrip()
    size = "unknown memory" if process.memory is None else gib(process.memory)
    user = f"user {process.user}, " if process.user else ""
    return f"pid {process.pid} ({user}{size}: {command})"


def _listed(words: Sequence[str], between: str = "; ") -> str:
    more = [f"{len(words) - _NAMED} more"] if len(words) > _NAMED else []
    if not more:
        return between.join(words)
    return f"{between.join(words[:_NAMED])} and {more[0]}"
