"""Where on the machine each worker goes: its GPUs, and the CPU cores beside them."""

from __future__ import annotations

from dataclasses import replace

from vllm_stack.errors import StackError, UsageError
from vllm_stack.gpus.amd_mask import ROCR_MASK, hip_indices, hip_tokens, masks_in_force
from vllm_stack.gpus.assignment import Slice, assign
from vllm_stack.gpus.mask import MASK, visible_tokens
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.planning.cpu_share import split_cores
from vllm_stack.vllm_arguments import needed_share

# What to do where no driver tells of GPUs.
WITHOUT_A_DRIVER = "'--device cpu' runs vLLM's CPU build, '--gpus 0,1' names GPUs without asking the driver"


def places(options: Options, inventory: Inventory) -> tuple[Slice, ...]:
    """Give each worker its place; on a box without GPUs that is a share of the cores.

    Raises `InsufficientGpus`, `GpuBusy` or `UsageError`, naming what is missing or in the way.
    """
    cores = inventory.machine.cores
    if options.on_cpu:
        shares = split_cores(cores, options.all_workers)
        return tuple(Slice((), (), shares[index]) for index in options.worker_indices)
    if not options.workers:
        return ()
    if options.spans_boxes:
        # Who gets which is Ray's business: what counts here is what one of these GPUs is.
        options = replace(options, workers=1, tensor_parallel_size=1, pipeline_parallel_size=1, ray_host=None)
    slices = assign(
        _budget(options, inventory),
        inventory.gpus,
        options.workers * options.pipeline_parallel_size,
        options.tensor_parallel_size,
        in_order=options.gpus is not None,
        allow_busy=options.allow_busy,
        share=needed_share(options.vllm_args),
        own_title=Layout.at(options.out).process_title(""),
        why=_why_so_few(options, inventory),
        reserved=inventory.reserved,
    )
    return tuple(replace(one, cores=_worth_pinning(one.cores, cores)) for one in slices)


def usable_gpus(options: Options, inventory: Inventory) -> tuple[str, ...]:
    """Give every GPU that the stack may use, as a word of CUDA_VISIBLE_DEVICES (or HIP's on AMD)."""
    return _budget(options, inventory)


def most_places(options: Options, inventory: Inventory) -> tuple[Slice, ...]:
    """Give the places of the most workers that there are places for, whatever --workers says.

    Raises `UsageError` for what no number of workers would mend.
    """
    devices = sum(max(1, len(gpu.migs)) for gpu in inventory.gpus.gpus)
    most = max(len(options.gpus or ()), devices) // options.tensor_parallel_size
    for workers in range(most, 0, -1):
        try:
            return places(replace(options, workers=workers), inventory)
        except UsageError:
            raise
        except StackError:
            continue
    return ()


def most_gpus(options: Options, inventory: Inventory) -> int:
    """Say how many GPUs one worker could have here: those it may use, and of MIG devices one."""
    single = most_places(replace(options, tensor_parallel_size=1), inventory)
    return 1 if any(gpu.mig_enabled for one in single for gpu in one.gpus) else len(single)


def _budget(options: Options, inventory: Inventory) -> tuple[str, ...]:
    """Give the words that the masks of the workers are built from: CUDA_VISIBLE_DEVICES, or HIP's on AMD."""
    if inventory.gpus.vendor == "amd":
        if options.gpus is not None:
            return hip_indices(options.gpus, inventory.gpus)
        return hip_tokens(inventory.gpu_masks, inventory.gpus)
    return options.gpus or visible_tokens(inventory.gpu_masks.get(MASK), inventory.gpus)


def _worth_pinning(near: tuple[int, ...], cores: tuple[int, ...]) -> tuple[int, ...]:
    """Give those of the cores beside the GPUs that we may use; none if that is all or nothing.

    The wrapper pins its server to them, and the memory that the server touches first then comes from
    the same NUMA node. vLLM's own --numa-bind needs the program numactl, binds the memory strictly
    (vllm/utils/numa_utils.py), so that a full node kills, and leaves the API server where it is.
    """
    usable = tuple(core for core in cores if core in near)
    return usable if len(usable) < len(cores) else ()


def _why_so_few(options: Options, inventory: Inventory) -> str:
    others = 0 if options.gpus is not None else len(inventory.reserved)
    taken = f"{others} belong{'s' * (others == 1)} to the other models" if others else ""
    return "; ".join(filter(None, (taken, _why_so_few_here(options, inventory))))


def _why_so_few_here(options: Options, inventory: Inventory) -> str:
    if options.gpus is not None:
        return f"--gpus {','.join(options.gpus)}"
    if inventory.gpus.trouble:
        return f"{inventory.gpus.trouble}; {WITHOUT_A_DRIVER}"
    masks = masks_in_force(inventory.gpu_masks, inventory.gpus)
    if masks:
        told = ", ".join(f"{name}={value!r}" for name, value in masks.items())
        left = "ROCr leaves" if ROCR_MASK in masks else "the box has"
        return f"{told} is respected; {left} {len(inventory.gpus.gpus)}"
    return ""
