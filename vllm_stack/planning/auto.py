"""How many workers, and of how many GPUs, where the user leaves that to us."""

from __future__ import annotations

from dataclasses import replace

from vllm_stack.errors import ModelError, UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.model.estimate import smallest_size
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.planning.demand import demand_of
from vllm_stack.planning.more_boxes import on_more_boxes
from vllm_stack.planning.placement import most_gpus, most_places
from vllm_stack.sizes import gib


def decide(options: Options, inventory: Inventory) -> tuple[Options, tuple[str, ...]]:
    """Give options in which nothing is left open, and a sentence for each of them that was.

    The most workers that fit: each of the fewest GPUs that hold the model, as many as the free GPUs make.
    Where that cannot be told the answer is the least, and the checks say what is wrong with it. Raises
    `UsageError` for `auto` without GPUs or on several boxes, and `ModelError` for a model that no slice here
    holds.
    """
    if options.spans_boxes and options.automatic:
        what = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(options.automatic))
        raise UsageError(f"{what} auto counts the GPUs of this box: with --ray-host say how many")
    reasons: list[str] = []
    if "tensor_parallel_size" in options.automatic:
        size, reason = _size(options, inventory)
        options = replace(options, tensor_parallel_size=size)
        reasons.append(f"--tensor-parallel-size auto: {size}, {reason}")
    if "workers" in options.automatic:
        workers = _workers(options, inventory)
        options = replace(options, workers=workers)
        size = options.tensor_parallel_size
        each = "one for each free GPU" if size == 1 else f"as many as the free GPUs make with {size} for each"
        reasons.append(f"--workers auto: {workers}, {each}")
    return replace(options, automatic=frozenset()), tuple(reasons)


def _size(options: Options, inventory: Inventory) -> tuple[int, str]:
    if options.on_cpu:
        return 1, "because a CPU worker has no GPUs"
    single = most_places(replace(options, tensor_parallel_size=1), inventory)
    memories = [one.memory for one in single if one.memory]
    config = inventory.model.config if isinstance(inventory.model, Model) else None
    if config is None or config.weight_bytes is None or not memories:
        return 1, "because the size of the model, or of the GPUs, is not known"
    most = most_gpus(options, inventory)
    demand = demand_of(options, min(memories), most)
    size = smallest_size(config, demand)
    if size is None:
        raise ModelError(
            f"--tensor-parallel-size auto: {most} free GPU{'s' * (most > 1)} of {gib(min(memories))} cannot "
            f"hold {options.model} ({gib(config.weight_bytes)} of weights) and one request of its longest "
            "length: use GPUs with more memory, a smaller quantization, or `-- --max-model-len` with less"
            f"{on_more_boxes(config, demand, options)}"
        )
    return size, f"the fewest GPUs of {gib(min(memories))} that hold it"


def _workers(options: Options, inventory: Inventory) -> int:
    if options.on_cpu:
        raise UsageError("--workers auto counts GPUs: with --device cpu say how many, e.g. --workers 2")
    return max(1, len(most_places(options, inventory)))
