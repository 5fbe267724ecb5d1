"""What the machine gives a stack besides GPUs: memory, room on its disks, limits of its kernel."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from dataclasses import dataclass
from pathlib import Path

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - it is measured, nothing is put there


@dataclass(frozen=True, slots=True)
class Machine:
    """Sizes in bytes; None where the system does not tell.

    `memory_available` is what programs can have without swapping (MemAvailable of proc(5)). `open_files` is
    the hard limit, up to which every program may raise its own; None is no limit. `ephemeral_ports`
    are the first and the last port that the kernel gives to outgoing connections.
    """

    cores: tuple[int, ...]
    memory_total: int
    memory_available: int | None = None
    open_files: int | None = None
    shared_memory_free: int | None = None
    disk_free: int | None = None
    ephemeral_ports: tuple[int, int] | None = None


def read_machine(out: Path) -> Machine:
    """Look at the machine; `disk_free` is that of the file system where `out` lies or will lie."""
    return Machine(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        memory_total=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_available=_memory_available(),
        open_files=_open_files(),
        shared_memory_free=free_bytes(_SHARED_MEMORY),
        disk_free=free_bytes(out),
        ephemeral_ports=_ephemeral_ports(),
    )


def interface_of(host: str | None) -> str | None:
    """Give the network interface that has this address, or that a name stands for; None where none has."""
    if host is None:
        return None
    import psutil  # which few stacks need here

    with contextlib.suppress(OSError, UnicodeError):
        addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
        for name, own in psutil.net_if_addrs().items():
            if any(address.address.partition("%")[0] in addresses for address in own):
                return name
    return None


def free_bytes(path: Path) -> int | None:
    """Give what a user without privileges can still write where `path` lies or will lie."""
    for place in (path, *path.parents):
        with contextlib.suppress(OSError):
            told = os.statvfs(place)
            return told.f_bavail * told.f_frsize
    return None


def _memory_available() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _open_files() -> int | None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _ephemeral_ports() -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        first, last = _PORT_RANGE.read_text("ascii").split()
        return int(first), int(last)
    return None
