"""Free ports for servers under test, also with several pytest processes at once.

They lie outside the ephemeral range, so no outgoing connection takes one between our look and
the server's bind. A port that was handed out stays reserved, by an abstract Unix socket of its
name, for as long as this process lives: other test processes skip it, and the kernel forgets
the reservation with us.
"""

from __future__ import annotations

import errno
import random
import socket
from pathlib import Path

LOWEST, HIGHEST = 10_000, 65_000

_reservations: list[int] = []  # file descriptors, never closed


def free_port() -> int:
    """Return one free port."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return `count` consecutive free ports: base, base + 1, ..."""
    ranges = [ports for ports in _outside_ephemeral() if len(ports) >= count]
    for _ in range(1000):
        ports = random.choices(ranges, [len(ports) for ports in ranges])[0]
        base = random.randrange(ports.start, ports.stop - count + 1)
        chosen = range(base, base + count)
        if _reserve(chosen):
            return list(chosen)
    raise AssertionError(f"no {count} consecutive free ports in {ranges}")


def _outside_ephemeral() -> list[range]:
    low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    ranges = [range(LOWEST, min(int(low), HIGHEST)), range(max(int(high) + 1, LOWEST), HIGHEST)]
    # Where everything is ephemeral, a port in the middle is still better than none.
    return [ports for ports in ranges if len(ports) >= 1000] or [range(20_000, 30_000)]


def _reserve(ports: range) -> bool:
    taken: list[socket.socket] = []
    for port in ports:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        taken.append(sock)
        try:
            sock.bind(f"\0vllm-stack-test-port-{port}")
            free = _bindable(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            free = False
        if not free:
            for sock in taken:
                sock.close()
            return False
    _reservations.extend(sock.detach() for sock in taken)
    return True


def _bindable(port: int) -> bool:
    # The wildcard, without SO_REUSEADDR: it clashes with a bind to any address, with one that
    # does not listen yet and with TIME_WAIT. Nothing ever listens here.
    with socket.socket() as sock:
        try:
            sock.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True
