"""What the machine must have for a stack, whatever it serves."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.errors import MachineError, PortError, UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.planning.cpu_share import kv_cache_bytes
from vllm_stack.planning.deployment import Deployment, check_distinct
from vllm_stack.planning.option_rules import check_options
from vllm_stack.ports import check_overlap, port_uses, ports_of_others
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


def ports(deployments: Sequence[Deployment]) -> Finding:
    """No port twice, none that somebody holds, none where the kernel may put somebody."""
    uses = port_uses([one.options for one in deployments])
    inventory = deployments[0].inventory
    value = ranges([use.port for use in uses])
    try:
        check_overlap(uses, ports_of_others(deployments[0].options))
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


def shared_memory(deployments: Sequence[Deployment]) -> Finding | None:
    """The ranks of a tensor-parallel worker talk to their engine, and NCCL to itself, through /dev/shm."""
    free = deployments[0].inventory.machine.shared_memory_free
    ranks = sum(one.options.gpus_needed for one in deployments if one.options.tensor_parallel_size > 1)
    if not ranks or free is None:
        return None
    needed = ranks * _RANK_QUEUE
    value = f"{gib(free)} free in {_SHARED_MEMORY}"
    if free >= needed:
        return ok(value)
    return warning(
        value,
        f"{_SHARED_MEMORY} has {gib(free)} free, and {ranks} tensor-parallel ranks may fill "
        f"{gib(needed)}; a full one kills them with SIGBUS: enlarge it "
        "(mount -o remount,size=16G /dev/shm; in a container --shm-size or --ipc=host)",
    )


def host_memory(deployments: Sequence[Deployment]) -> Finding | None:
    """N servers start at once, each with libraries of its own, and on a CPU with weights of its own."""
    machine = deployments[0].inventory.machine
    available, workers = machine.memory_available, sum(one.options.workers for one in deployments)
    if not workers or available is None:
        return None
    needed = sum(_weights_in_memory(one) + one.options.gpus_needed * _PROCESS for one in deployments)
    if deployments[0].options.on_cpu:
        needed += workers * kv_cache_bytes(workers, machine.memory_total)
    value = f"{gib(available)} of {gib(machine.memory_total)} available"
    if needed <= available:
        return ok(value)
    who = "1 worker takes" if workers == 1 else f"{workers} workers take"
    fewer = "" if workers == 1 else "fewer --workers, "
    return warning(
        value,
        f"{who} about {gib(needed)} of memory while loading, and {gib(available)} are available: "
        f"use {fewer}a smaller model, or some swap",
    )


def _weights_in_memory(one: Deployment) -> int:
    """Weights pass through the page cache on their way to a GPU, which the kernel takes back."""
    weights = one.inventory.found_model().weight_bytes or 0
    return weights * one.options.workers if one.options.on_cpu else 0


def disk(deployments: Sequence[Deployment]) -> Finding | None:
    """Logs grow up to their limits; a model that is not here yet is downloaded by the first worker."""
    free = deployments[0].inventory.machine.disk_free
    if free is None:
        return None
    out = Layout.at(deployments[0].options.out).out
    value = f"{gib(free)} free at {out}"
    if free < _DISK_NEEDED:
        return refused(
            value,
            MachineError(f"The disk of {out} has {free // MIB} MiB free: make room, or use another --out"),
        )
    download = _download_refusal(deployments)
    if download is not None:
        return refused(value, download)
    programs = sum(one.options.workers for one in deployments) + 1
    logs = programs * _LOGS
    if free < logs:
        return warning(
            value,
            f"The logs of {programs} programs may grow to {gib(logs)}, and {out} has {gib(free)} "
            "free: make room, or use another --out",
        )
    return ok(value)


def _download_refusal(deployments: Sequence[Deployment]) -> MachineError | None:
    """Say that what is downloaded does not go onto the disk, as if it were one disk for all of it."""
    downloads = {
        found.name: (found.download_bytes, one.inventory.model_disk_free)
        for one in deployments
        if (found := one.inventory.found_model()).download_bytes is not None
        and one.inventory.model_disk_free is not None
    }
    needed = sum(size or 0 for size, _ in downloads.values())
    free = min((free or 0 for _, free in downloads.values()), default=0)
    if free >= needed:
        return None
    return MachineError(
        f"{' and '.join(downloads)} {'is a download' if len(downloads) == 1 else 'are downloads'} of "
        f"{gib(needed)}, and the disk of the hub's cache has "
        f"{gib(free)} free: make room, or set HF_HOME to a directory on a larger disk"
    )


def options_agree(deployments: Sequence[Deployment]) -> Finding:
    """The options can be meant together."""
    try:
        check_options([one.options for one in deployments])
        check_distinct(deployments)
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
