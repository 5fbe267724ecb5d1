"""Which worker gets which GPUs: free ones near each other, or a refusal that names who uses them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_stack.errors import GpuBusy, InsufficientGpus, UsageError
from vllm_stack.gpus.box import Gpu, GpuBox, GpuProcess, MigDevice
from vllm_stack.gpus.mask import find
from vllm_stack.sizes import gib

# How many GPUs one message names, how many holders of each, and how many letters of their commands.
_NAMED = 3
_SHOWN = 80
# All groups of a box with 16 GPUs are 12,870 at most, which takes about 50 ms.
_GROUPS = 20_000
_NO_MIG_DEVICE = "MIG is enabled on it, but it has no MIG device (nvidia-smi mig -cgi creates one)"


@dataclass(frozen=True, slots=True)
class Slice:
    """What one worker gets: its words of CUDA_VISIBLE_DEVICES, and what lies beside them.

    `gpus` is empty where the box could not be read; a MIG device is told by its whole GPU. `cores` are
    those near any of the GPUs, none unless every GPU tells its own. `memory` is what the smallest of its GPUs
    or MIG devices has, in bytes, None where any of them does not tell.
    """

    tokens: tuple[str, ...]
    gpus: tuple[Gpu, ...]
    cores: tuple[int, ...]
    memory: int | None = None
    # Names of its GPUs or MIG devices, the same whichever words were used for them.
    identities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Candidate:
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


def assign(
    tokens: Sequence[str],
    box: GpuBox,
    workers: int,
    size: int,
    *,
    in_order: bool,
    allow_busy: bool,
    share: float,
    own_title: str,
    why: str = "",
    reserved: frozenset[str] = frozenset(),
) -> tuple[Slice, ...]:
    """Give each of `workers` a slice of `size` GPUs out of `tokens`.

    Free ones only, unless `allow_busy` fills up with busy ones. With `in_order` the slices are
    consecutive in the user's order; otherwise each is the best group of what is left. `share` is the part
    of a GPU's memory that vLLM asks for at its start. Processes whose command starts with `own_title` are
    in nobody's way. `why` says what made the tokens so few. `reserved` are the identities of what other
    models have: nobody else gets it, but who names it and would have busy ones. Tokens are taken on trust if
    the box could not be read.

    Raises `InsufficientGpus`, `GpuBusy`, or `UsageError` for MIG devices that would have to be joined and
    for a GPU that is named twice, or for two models.
    """
    needed = workers * size
    candidates = [_judge(place, token, box, share, own_title) for place, token in enumerate(tokens)]
    _check_twice(candidates)
    if not (in_order and allow_busy):
        candidates = _unreserved(candidates, reserved, named=in_order)
    if len(candidates) < needed:
        raise _too_few(needed, candidates, why or _empty_mig(box))
    if in_order:
        candidates = candidates[:needed]
    if size > 1:
        candidates = _without_mig(candidates, needed, size)
    usable = [candidate for candidate in candidates if candidate.trouble is None]
    if len(usable) < needed:
        raise _unusable(candidates) if in_order else _too_few(needed, candidates, why or _empty_mig(box))
    free = [candidate for candidate in usable if not candidate.busy]
    busy = [candidate for candidate in usable if candidate.busy]
    if len(free) < needed and not allow_busy:
        raise _in_use(needed, len(free), busy)
    if in_order or box.trouble:
        groups = [usable[start : start + size] for start in range(0, needed, size)]
    else:
        pool = free if len(free) >= needed else _by_place(free + busy[: needed - len(free)])
        groups = _best_groups(pool, box, workers, size)
    return tuple(_slice(group) for group in groups)


def _judge(place: int, token: str, box: GpuBox, share: float, own_title: str) -> _Candidate:
    if box.trouble:
        return _Candidate(place, token, None, is_mig=token.startswith("MIG-"))
    named = find(token, box)
    if named is None:
        trouble = "it is not on this machine, or the UUID fits several"
        return _Candidate(place, token, None, is_mig=token.startswith("MIG-"), trouble=trouble)
    gpu, mig = named.gpu, named.mig
    # Of a MIG device that the driver does not tell, nothing is known; its GPU's figures are not its own.
    part = mig or (None if named.is_mig else gpu)
    memory = _memory_at_start(part, own_title) if part else None
    # vLLM refuses to start then: `request_memory` in vllm/v1/worker/utils.py.
    short = memory is not None and memory[0] < math.ceil(memory[1] * share)
    foreign = [one for one in (part.processes if part else ()) if not one.command.startswith(own_title)]
    computing = [process for process in foreign if process.computes]
    return _Candidate(
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
        return _NO_MIG_DEVICE
    return None


def _check_twice(candidates: Sequence[_Candidate]) -> None:
    seen: dict[str, _Candidate] = {}
    for candidate in candidates:
        other = seen.setdefault(candidate.identity, candidate)
        if other is not candidate:
            raise UsageError(
                f"{candidate.label} is named twice, as {other.token} and as {candidate.token}: leave one out"
            )


def _unreserved(candidates: Sequence[_Candidate], reserved: frozenset[str], named: bool) -> list[_Candidate]:
    """Leave out what other models have; raises `UsageError` if the user `named` it for this one."""
    for candidate in candidates:
        if named and candidate.identity in reserved:
            raise UsageError(
                f"{candidate.label} is given to two models: name others for one of them, or pass "
                "--allow-busy, with a --gpu-memory-utilization for each that leaves room for the other"
            )
    return [candidate for candidate in candidates if candidate.identity not in reserved]


def _without_mig(candidates: Sequence[_Candidate], needed: int, size: int) -> list[_Candidate]:
    """Leave out the MIG devices; raises `UsageError` if too few whole GPUs are left."""
    whole = [candidate for candidate in candidates if not candidate.is_mig]
    if len(whole) < needed:
        raise UsageError(
            f"--tensor-parallel-size {size} cannot use MIG devices: CUDA gives a process one of them; "
            "use --tensor-parallel-size 1, or switch MIG off"
        )
    return whole


def _too_few(needed: int, candidates: Sequence[_Candidate], why: str) -> InsufficientGpus:
    available = sum(candidate.trouble is None for candidate in candidates)
    reasons = "; ".join(filter(None, (_troubles(candidates), why)))
    return InsufficientGpus(
        f"Insufficient GPUs: Required {needed}, but only {available} are available. "
        "Please adjust '--tensor-parallel-size' or '--workers'" + (f" ({reasons})" if reasons else "")
    )


def _unusable(candidates: Sequence[_Candidate]) -> InsufficientGpus:
    return InsufficientGpus(f"{_troubles(candidates)}: name other GPUs with --gpus")


def _troubles(candidates: Sequence[_Candidate]) -> str:
    return _listed([f"{one.label} cannot be used: {one.trouble}" for one in candidates if one.trouble])


def _empty_mig(box: GpuBox) -> str:
    """Say which GPUs no token stands for, although they are there."""
    empty = [gpu for gpu in box.gpus if gpu.mig_enabled and not gpu.migs]
    return _listed([f"GPU {gpu.index} cannot be used: {_NO_MIG_DEVICE}" for gpu in empty])


def _in_use(needed: int, free: int, busy: Sequence[_Candidate]) -> GpuBusy:
    worst_first = sorted(
        busy, key=lambda one: max((holder.memory or 0 for holder in one.holders), default=0), reverse=True
    )
    used = _listed([_holding(one) for one in worst_first])
    return GpuBusy(
        f"Not enough free GPUs ({needed} needed, {free} free): {used}; end what runs there, "
        "name other GPUs with --gpus, ask for fewer --workers, or pass --allow-busy"
    )


def _holding(candidate: _Candidate) -> str:
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


def _by_place(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.place)


def _best_groups(pool: Sequence[_Candidate], box: GpuBox, workers: int, size: int) -> list[list[_Candidate]]:
    """Take the best group as often as there are workers; give them in the order of their first tokens."""
    linked = _linked(pool, box)
    # A single GPU cuts few links if it is of a poorer kind, and that is no reason to take it.
    count_cuts = size > 1 or len({candidate.model for candidate in pool}) == 1
    left = list(range(len(pool)))
    groups = []
    for _ in range(workers):
        rest = sum(1 << number for number in left)
        ranked = (
            (_rank(group, pool, linked, rest if count_cuts else 0), group) for group in _groups(left, size)
        )
        best = min(ranked)[1]
        groups.append(best)
        left = [number for number in left if number not in best]
    return [[pool[number] for number in group] for group in sorted(groups)]


def _groups(left: Sequence[int], size: int) -> Iterable[tuple[int, ...]]:
    """Give all groups; neighbours only where that would take too long."""
    if math.comb(len(left), size) <= _GROUPS:
        return itertools.combinations(left, size)
    return (tuple(left[start : start + size]) for start in range(len(left) - size + 1))


def _rank(
    group: tuple[int, ...], pool: Sequence[_Candidate], linked: Sequence[int], rest: int
) -> tuple[bool, bool, bool, int]:
    """Rank a group, best lowest: one model, NVLink between all, one NUMA node, few NVLinks cut.

    `linked` and `rest` are sets of GPUs as bits: whom each one has NVLink to, and who is still to be had.
    """
    own = sum(1 << number for number in group)
    nodes = {_node(pool[number]) for number in group}
    return (
        len({pool[number].model for number in group}) > 1,
        any(own & ~linked[number] & ~(1 << number) for number in group),
        len(group) > 1 and (len(nodes) > 1 or None in nodes),
        sum((linked[number] & rest & ~own).bit_count() for number in group),
    )


def _linked(pool: Sequence[_Candidate], box: GpuBox) -> list[int]:
    """Give for each GPU those of the pool that it has NVLink to, as bits; MIG devices have none."""
    numbers = {one.gpu.index: number for number, one in enumerate(pool) if one.gpu and not one.is_mig}
    linked = [0] * len(pool)
    for link in box.links:
        if link.way == "NVLINK" and link.one in numbers and link.other in numbers:
            one, other = numbers[link.one], numbers[link.other]
            linked[one] |= 1 << other
            linked[other] |= 1 << one
    return linked


def _node(candidate: _Candidate) -> int | None:
    return candidate.gpu.numa_node if candidate.gpu else None


def _slice(group: Sequence[_Candidate]) -> Slice:
    gpus = tuple(candidate.gpu for candidate in group if candidate.gpu is not None)
    near = {core for gpu in gpus for core in gpu.cores}
    totals = [total for candidate in group if (total := candidate.memory_total)]
    return Slice(
        tokens=tuple(candidate.token for candidate in group),
        gpus=gpus,
        cores=tuple(sorted(near)) if all(gpu.cores for gpu in gpus) else (),
        memory=min(totals) if len(totals) == len(group) else None,
        identities=tuple(candidate.identity for candidate in group),
    )
