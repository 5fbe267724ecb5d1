"""The driver, the GPUs, and which worker gets which."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.errors import InsufficientGpus, StackError
from vllm_stack.gpus.assignment import Slice
from vllm_stack.gpus.box import Gpu, Vendor
from vllm_stack.inventory import Inventory
from vllm_stack.options import Options
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.placement import WITHOUT_A_DRIVER, places
from vllm_stack.sizes import gib
from vllm_stack.vllm_arguments import needed_share
from vllm_stack.vllm_command import VllmCommand

_VENDORS: dict[Vendor, str] = {"nvidia": "NVIDIA", "amd": "AMD"}


def driver(options: Options, inventory: Inventory) -> Finding | None:
    """Without a driver there are no GPUs; one that is older than torch's CUDA does not run it."""
    if options.on_cpu or not options.workers:
        return None
    box = inventory.gpus
    if box.trouble:
        if options.gpus is not None:
            return warning(box.trouble, f"The GPUs of --gpus are taken on trust: {box.trouble}")
        return refused(
            box.trouble,
            InsufficientGpus(f"No GPU can be used: {box.trouble}; {WITHOUT_A_DRIVER}"),
        )
    value = f"{_VENDORS[box.vendor]} {box.driver or 'of unknown version'}" + (
        f", CUDA {_version(box.cuda)}" if box.cuda else ""
    )
    # AMD's driver tells no CUDA, and is compared with nothing.
    needed = inventory.vllm.cuda if isinstance(inventory.vllm, VllmCommand) else None
    if box.cuda is not None and needed is not None and box.cuda[0] < needed[0]:
        return warning(
            value,
            f"The torch of this vLLM is built for CUDA {_version(needed)}, and the driver serves "
            f"{_version(box.cuda)}: update the driver, or install a vLLM for CUDA {box.cuda[0]}",
        )
    return ok(value)


def gpus(options: Options, inventory: Inventory) -> Finding | None:
    """Every worker gets GPUs that are there, whole and free."""
    if options.on_cpu or not options.workers or (inventory.gpus.trouble and options.gpus is None):
        return None
    value = f"{_count(inventory.gpus.gpus)}, {options.gpus_needed} needed"
    try:
        slices = places(options, inventory)
    except StackError as error:
        return refused(value, error)
    if options.on_ray:
        return ok(f"{value}: Ray hands them out" + (", on all boxes" if options.spans_boxes else ""))
    placed = zip(options.worker_indices, slices, strict=True)
    shown = "; ".join(f"worker-{index}: {','.join(one.tokens)}" for index, one in placed)
    return ok(f"{value} ({shown})")


def gpu_sharing(deployments: Sequence[Deployment]) -> Finding | None:
    """What two models ask of one GPU at their starts, there is but once (`request_memory` of vLLM)."""
    shares: dict[str, dict[str, float]] = {}
    for one in deployments:
        if not (one.options.on_cpu or one.options.spans_boxes):  # Ray gives no GPU to two
            for place in slices_or_none(one.options, one.inventory):
                for identity in place.identities:
                    shares.setdefault(identity, {})[one.name] = needed_share(one.options.vllm_args)
    shared = {identity: asked for identity, asked in shares.items() if len(asked) > 1}
    if not shared:
        return None
    identity, asked = max(shared.items(), key=lambda item: sum(item[1].values()))
    value = f"GPU {identity}: {' + '.join(f'{share:g}' for share in asked.values())} of its memory"
    who = f"GPU {identity} is shared by {' and '.join(asked)}"
    if sum(asked.values()) > 1:
        return refused(
            value,
            InsufficientGpus(
                f"{who}, which ask for {sum(asked.values()):.2f} of its memory together: give each a "
                "--gpu-memory-utilization in its vllm-args that leaves room for the other"
            ),
        )
    if deployments[0].options.start_stagger in ("auto", "none"):
        return warning(
            value,
            f"{who}: vLLM measures free memory while it starts, so let them start one after another "
            "(--start-stagger 60)",
        )
    return ok(value)


def gpu_health(options: Options, inventory: Inventory) -> Finding | None:
    """A GPU that counts memory errors or is throttled serves, until it does not."""
    if options.on_cpu or not inventory.gpus.gpus:
        return None
    ailing = [
        f"GPU {gpu.index}: {what}"
        for gpu in inventory.gpus.gpus
        for what in (*((gpu.trouble,) if gpu.trouble else ()), *gpu.warnings)
    ]
    if not ailing:
        return ok("nothing is reported")
    return warning(f"{len(ailing)} reported", "; ".join(ailing))


def slices_or_none(options: Options, inventory: Inventory) -> tuple[Slice, ...]:
    """Give the places of the workers, or nothing where another row says why there are none."""
    try:
        return places(options, inventory)
    except StackError:
        return ()


def _count(gpus: tuple[Gpu, ...]) -> str:
    """Say what GPUs there are, by their models."""
    names = list(dict.fromkeys((gpu.name, gpu.memory_total) for gpu in gpus))
    counted = (
        f"{sum((gpu.name, gpu.memory_total) == name for gpu in gpus)} x {name[0]} ({gib(name[1])})"
        for name in names
    )
    return ", ".join(counted) or "no GPU"


def _version(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
