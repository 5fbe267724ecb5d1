"""Which model of a stack gets which part of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_stack.errors import StackError, UsageError, about
from vllm_stack.options import numbered
from vllm_stack.planning.auto import decide
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.placement import places


def share_out(deployments: Sequence[Deployment]) -> tuple[tuple[Deployment, ...], tuple[str, ...]]:
    """Decide what was left open, keep the GPUs of each model from the others, and number the workers.

    Gives the models in their order, and a sentence for each decision. A model for which there is no place
    takes none: its checks say so. Raises `StackError` where `auto` has no answer.
    """
    _check_one_takes_the_rest(deployments)
    shared = list(deployments)
    several = len(shared) > 1
    decisions: dict[int, tuple[str, ...]] = {}
    taken: frozenset[str] = frozenset()
    for index in sorted(range(len(shared)), key=lambda index: _turn(deployments[index])):
        own = replace(shared[index], inventory=replace(shared[index].inventory, reserved=taken))
        with about(own.name if several else ""):
            options, reasons = decide(own.options, own.inventory)
        shared[index] = own = replace(own, options=options)
        decisions[index] = tuple(f"{own.name}: {reason}" if several else reason for reason in reasons)
        if several:
            taken |= _identities(own)
    options_of_all = numbered([one.options for one in shared])
    return (
        tuple(replace(one, options=options) for one, options in zip(shared, options_of_all, strict=True)),
        tuple(reason for _, reasons in sorted(decisions.items()) for reason in reasons),
    )


def _turn(one: Deployment) -> tuple[bool, bool, bool, int]:
    """Named GPUs are not for others; large slices need what lies together; the rest takes what is left."""
    options = one.options
    workers_open, size_open = (name in options.automatic for name in ("workers", "tensor_parallel_size"))
    return options.gpus is None, workers_open, size_open, -options.tensor_parallel_size


def _check_one_takes_the_rest(deployments: Sequence[Deployment]) -> None:
    greedy = [
        one.name for one in deployments if "workers" in one.options.automatic and one.options.gpus is None
    ]
    if len(greedy) > 1:
        raise UsageError(
            f'workers = "auto" takes all GPUs that are left, so one model only may say it, not '
            f"{' and '.join(greedy)}: give the others a number, or GPUs of their own"
        )


def _identities(one: Deployment) -> frozenset[str]:
    if one.options.on_cpu or one.options.spans_boxes:
        return frozenset()  # on several boxes Ray keeps the models apart
    try:
        return frozenset(word for place in places(one.options, one.inventory) for word in place.identities)
    except StackError:
        return frozenset()
