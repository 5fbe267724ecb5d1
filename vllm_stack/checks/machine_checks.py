"""What the machine must have for a stack, whatever it serves."""

from __future__ import annotations

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.cpu_share import kv_cache_bytes
from vllm_stack.errors import MachineError, PortError, UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.option_rules import check_options
from vllm_stack.options import Options
from vllm_stack.ports import check_overlap, port_uses
from vllm_stack.ranges import ranges
from vllm_stack.sizes import GIB, MIB, gib

# supervisord does not start with less (`minfds` in supervisord.conf).
_FILES_NEEDED = 1024
# The proxy takes two files for a request, and a few hundred clients are nothing unusual.
_FILES_WANTED = 4096
# Of each program: a log of 50 MB and three old ones (supervisord.conf).
_LOGS = 200 * 10**6
_DISK_NEEDED = 50 * MIB
# A server without its weights, measured with vLLM 0.32: Python, torch and the libraries of each process.
_PROCESS = 3 * GIB
# vllm/distributed/device_communicators/shm_broadcast.py: 10 chunks of 24 MiB for each queue between the
# engine and a rank. They are filled as they are used, and NCCL keeps its own buffers there.
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - it is spoken of
_RANK_QUEUE = 240 * MIB


def ports(options: Options, inventory: Inventory) -> Finding:
    """No port twice, none that somebody holds, none where the kernel may put somebody."""
    uses = port_uses(options)
    value = ranges([use.port for use in uses])
    try:
        check_overlap(uses)
        if inventory.ports is not None:
            raise inventory.ports
    except PortError as error:
        return refused(value, error)
    if inventory.machine.ephemeral_ports is None:
        return ok(f"{value} free")
    first, last = inventory.machine.ephemeral_ports
    inside = [use for use in uses if first <= use.port <= last]
    if not inside:
        return ok(f"{value} free")
    return warning(
        f"{value} free",
        f"Port {inside[0].port} of {inside[0].owner} lies in the range from which the kernel takes ports for "
        f"outgoing connections ({first}-{last}), so that another program may hold it at the next start: "
        f"choose {inside[0].option} outside, or reserve it (sysctl net.ipv4.ip_local_reserved_ports)",
    )


def open_files(options: Options, inventory: Inventory) -> Finding:
    """Programs raise their own limit up to the hard one."""
    limit = inventory.machine.open_files
    if limit is None:
        return ok("no limit")
    value = f"{limit} open files"
    if limit < _FILES_NEEDED:
        return refused(
            value,
            MachineError(
                f"A program may open {limit} files here (ulimit -Hn), and supervisord does not start with "
                f"less than {_FILES_NEEDED}: raise the hard limit (LimitNOFILE= of systemd, limits.conf)"
            ),
        )
    if limit < _FILES_WANTED:
        return warning(
            value,
            f"A program may open {limit} files here (ulimit -Hn), enough for some {limit // 2 - 100} "
            "requests at a time: raise the hard limit (LimitNOFILE= of systemd, limits.conf)",
        )
    return ok(value)


def shared_memory(options: Options, inventory: Inventory) -> Finding | None:
    """The ranks of a tensor-parallel worker talk to their engine, and NCCL to itself, through /dev/shm."""
    free = inventory.machine.shared_memory_free
    if options.tensor_parallel_size == 1 or not options.workers or free is None:
        return None
    needed = options.gpus_needed * _RANK_QUEUE
    value = f"{gib(free)} free in {_SHARED_MEMORY}"
    if free >= needed:
        return ok(value)
    return warning(
        value,
        f"{_SHARED_MEMORY} has {gib(free)} free, and {options.gpus_needed} tensor-parallel ranks may fill "
        f"{gib(needed)}; a full one kills them with SIGBUS: enlarge it "
        "(mount -o remount,size=16G /dev/shm; in a container --shm-size or --ipc=host)",
    )


def host_memory(options: Options, inventory: Inventory) -> Finding | None:
    """N servers start at once, each with libraries of its own, and on a CPU with weights of its own."""
    available = inventory.machine.memory_available
    if not options.workers or available is None:
        return None
    weights = _weights_in_memory(options, inventory)
    needed = weights + options.gpus_needed * _PROCESS
    if options.on_cpu:
        needed += options.workers * kv_cache_bytes(options.workers, inventory.machine.memory_total)
    value = f"{gib(available)} of {gib(inventory.machine.memory_total)} available"
    if needed <= available:
        return ok(value)
    workers = "1 worker takes" if options.workers == 1 else f"{options.workers} workers take"
    fewer = "" if options.workers == 1 else "fewer --workers, "
    return warning(
        value,
        f"{workers} about {gib(needed)} of memory while loading, and {gib(available)} are available: "
        f"use {fewer}a smaller model, or some swap",
    )


def _weights_in_memory(options: Options, inventory: Inventory) -> int:
    """Weights pass through the page cache on their way to a GPU, which the kernel takes back."""
    model = inventory.found_model()
    return (model.weight_bytes or 0) * options.workers if options.on_cpu else 0


def disk(options: Options, inventory: Inventory) -> Finding | None:
    """Logs grow up to their limits; a model that is not here yet is downloaded by the first worker."""
    free = inventory.machine.disk_free
    if free is None:
        return None
    out = Layout.at(options.out).out
    value = f"{gib(free)} free at {out}"
    if free < _DISK_NEEDED:
        return refused(
            value,
            MachineError(f"The disk of {out} has {free // MIB} MiB free: make room, or use another --out"),
        )
    download = _download_refusal(inventory)
    if download is not None:
        return refused(value, download)
    logs = (options.workers + 1) * _LOGS
    if free < logs:
        return warning(
            value,
            f"The logs of {options.workers + 1} programs may grow to {gib(logs)}, and {out} has {gib(free)} "
            "free: make room, or use another --out",
        )
    return ok(value)


def _download_refusal(inventory: Inventory) -> MachineError | None:
    model = inventory.found_model()
    free = inventory.model_disk_free
    if model.download_bytes is None or free is None or free >= model.download_bytes:
        return None
    return MachineError(
        f"{model.name} is a download of {gib(model.download_bytes)}, and the disk of the hub's cache has "
        f"{gib(free)} free: make room, or set HF_HOME to a directory on a larger disk"
    )


def options_agree(options: Options, inventory: Inventory) -> Finding:
    """The options can be meant together."""
    try:
        check_options(options)
    except UsageError as error:
        return refused("they contradict each other", error)
    return ok("they agree")


def out(options: Options, inventory: Inventory) -> Finding:
    """The files go to a directory of ours; a unix socket's path has 107 bytes at most (unix(7))."""
    layout = Layout.at(options.out)
    if inventory.out is not None:
        return refused(str(layout.out), inventory.out)
    if layout.socket.is_relative_to(layout.out):
        return ok(str(layout.out))
    return ok(f"{layout.out}, whose path is too long for sockets: they are in {layout.socket.parent}")
