"""The ports of a stack: no two parts on one, and none that somebody else listens on."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from vllm_stack.address import LOOPBACK
from vllm_stack.errors import PortError
from vllm_stack.options import Options

HIGHEST = 65535
NOBODYS = range(0)
# Where Ray's processes listen if nothing else is said (`ray start --min-worker-port`, `--max-worker-port`).
# It ends when another of its ports lies there, and one of ours there may be taken at any time.
RAYS = range(10_002, 20_000)
# Ray's head listens everywhere, whatever it is told.
ANY_HOST = "0.0.0.0"  # noqa: S104 - what is looked at, not what is opened


@dataclass(frozen=True, slots=True)
class PortUse:
    """One port, the address it is bound on, and the option that moves it."""

    port: int
    host: str
    owner: str
    option: str


def port_uses(models: Sequence[Options]) -> tuple[PortUse, ...]:
    """Name every port of a stack of these models with its owner and the option that moves it."""
    stack = models[0]
    workers = (
        PortUse(port, LOOPBACK, f"worker-{index}", "--base-port")
        for one in models
        for index, port in zip(one.worker_indices, one.worker_ports, strict=False)
    )
    return (
        PortUse(stack.port, stack.door_host, "the proxy", "--port"),
        PortUse(stack.admin_port, LOOPBACK, "the admin door", "--admin-port"),
        *(_of_ray(stack) if stack.on_ray else workers),
    )


def ports_of_others(stack: Options) -> range:
    """Give the ports that no part of the stack may have."""
    return RAYS if stack.on_ray else NOBODYS


def _of_ray(stack: Options) -> Iterator[PortUse]:
    """Name the ports of a Ray cluster's head that others know it by; it takes free ones besides."""
    yield PortUse(stack.base_port, LOOPBACK, "Ray Serve", "--base-port")
    yield PortUse(stack.ray_port, ANY_HOST, "the head of the Ray cluster", "--ray-port")
    yield PortUse(stack.ray_dashboard_port, LOOPBACK, "Ray's dashboard", "--ray-dashboard-port")


def check_overlap(uses: Iterable[PortUse], others: range = NOBODYS) -> None:
    """Raise `PortError` when two parts share a port, or one lies outside 1..65535, or is others'."""
    seen: dict[int, PortUse] = {}
    for use in uses:
        _check_exists(use)
        if use.port in others:
            raise PortError(
                f"Port {use.port}, wanted for {use.owner}, is one of {others.start} to {others[-1]}, where "
                f"Ray takes ports for its processes: change {use.option}"
            )
        other = seen.setdefault(use.port, use)
        if other is not use:
            raise PortError(
                f"Port {use.port} was given to {other.owner} and to {use.owner}: "
                f"change {other.option} or {use.option}"
            )


def _check_exists(use: PortUse) -> None:
    if not 1 <= use.port <= HIGHEST:
        raise PortError(f"{use.owner} would get port {use.port}, outside 1..{HIGHEST}: lower {use.option}")


def check_free(uses: Iterable[PortUse], is_free: Callable[[str, int], bool] | None = None) -> None:
    """Raise `PortError` for the first port that there is not, or that cannot be bound now."""
    uses = tuple(uses)
    for use in uses:
        _check_exists(use)
    free = is_free or can_bind
    for use in uses:
        if not free(use.host, use.port):
            owner = _listener(use.port)
            raise PortError(
                f"Port {use.port}, wanted for {use.owner}, is in use{owner}: "
                f"stop what holds it or change {use.option}"
            )


def can_bind(host: str, port: int) -> bool:
    """Tell whether `host:port` can be bound; raises `PortError` for an address not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: a port in TIME_WAIT is free. SO_REUSEPORT is left out on purpose: with it
            # two stacks would share a port without a word.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except PermissionError as error:
        raise PortError(f"Port {port} cannot be opened by this user: {error.strerror}") from None
    except socket.gaierror as error:
        raise PortError(f"--host {host!r} is not an address: {error.strerror}") from None
    except UnicodeError:
        # What the codec of host names refuses, e.g. a label of more than 63 characters.
        raise PortError(f"--host {host!r} is not an address: no host can have that name") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        raise PortError(f"{host}:{port} cannot be opened: {error.strerror}") from None
    return True


def _listener(port: int) -> str:
    """Name the process that listens on `port`, where the system lets us see it."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return ""
    for connection in connections:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or not connection.pid:
            continue
        if connection.laddr.port == port:
            try:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
            except psutil.Error:
                return f" by process {connection.pid}"
    return ""
