"""Which worker gets which GPUs: free ones near each other, or a refusal that names who uses them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vllm_stack.errors import UsageError
from vllm_stack.gpus.box import Gpu, GpuBox
from vllm_stack.gpus.candidate import Candidate, judge
from vllm_stack.gpus.refusals import empty_mig, in_use, too_few, unusable

# All groups of a box with 16 GPUs are 12,870 at most, which takes about 50 ms.
_GROUPS = 20_000


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
    candidates = [judge(place, token, box, share, own_title) for place, token in enumerate(tokens)]
    _check_twice(candidates)
    if not (in_order and allow_busy):
        candidates = _unreserved(candidates, reserved, named=in_order)
    if len(candidates) < needed:
        raise too_few(needed, candidates, why or empty_mig(box))
    if in_order:
        candidates = candidates[:needed]
    if size > 1:
        candidates = _without_mig(candidates, needed, size)
    usable = [candidate for candidate in candidates if candidate.trouble is None]
    if len(usable) < needed:
        raise unusable(candidates) if in_order else too_few(needed, candidates, why or empty_mig(box))
    free = [candidate for candidate in usable if not candidate.busy]
    busy = [candidate for candidate in usable if candidate.busy]
    if len(free) < needed and not allow_busy:
        raise in_use(needed, len(free), busy)
    if in_order or box.trouble:
        groups = [usable[start : start + size] for start in range(0, needed, size)]
    else:
        pool = free if len(free) >= needed else _by_place(free + busy[: needed - len(free)])
        groups = _best_groups(pool, box, workers, size)
    return tuple(_slice(group) for group in groups)


def _check_twice(candidates: Sequence[Candidate]) -> None:
    seen: dict[str, Candidate] = {}
    for candidate in candidates:
        other = seen.setdefault(candidate.identity, candidate)
        if other is not candidate:
            raise UsageError(
                f"{candidate.label} is named twice, as {other.token} and as {candidate.token}: leave one out"
            )


def _unreserved(candidates: Sequence[Candidate], reserved: frozenset[str], named: bool) -> list[Candidate]:
    """Leave out what other models have; raises `UsageError` if the user `named` it for this one."""
    for candidate in candidates:
        if named and candidate.identity in reserved:
            raise UsageError(
                f"{candidate.label} is given to two models: name others for one of them, or pass "
                "--allow-busy, with a --gpu-memory-utilization for each that leaves room for the other"
            )
    return [candidate for candidate in candidates if candidate.identity not in reserved]


def _without_mig(candidates: Sequence[Candidate], needed: int, size: int) -> list[Candidate]:
    """Leave out the MIG devices; raises `UsageError` if too few whole GPUs are left."""
    whole = [candidate for candidate in candidates if not candidate.is_mig]
    if len(whole) < needed:
        raise UsageError(
            f"--tensor-parallel-size {size} cannot use MIG devices: CUDA gives a process one of them; "
            "use --tensor-parallel-size 1, or switch MIG off"
        )
    return whole


def _by_place(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.place)


def _best_groups(pool: Sequence[Candidate], box: GpuBox, workers: int, size: int) -> list[list[Candidate]]:
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
    group: tuple[int, ...], pool: Sequence[Candidate], linked: Sequence[int], rest: int
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


def _linked(pool: Sequence[Candidate], box: GpuBox) -> list[int]:
    """Give for each GPU those of the pool that it has NVLink to, as bits; MIG devices have none."""
    numbers = {one.gpu.index: number for number, one in enumerate(pool) if one.gpu and not one.is_mig}
    linked = [0] * len(pool)
    for link in box.links:
        if link.way == "NVLINK" and link.one in numbers and link.other in numbers:
            one, other = numbers[link.one], numbers[link.other]
            linked[one] |= 1 << other
            linked[other] |= 1 << one
    return linked


def _node(candidate: Candidate) -> int | None:
    return candidate.gpu.numa_node if candidate.gpu else None


def _slice(group: Sequence[Candidate]) -> Slice:
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
