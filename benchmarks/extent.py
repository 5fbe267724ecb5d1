"""How much is measured: the long way, and the quick one."""

from __future__ import annotations

from dataclasses import dataclass

# What can be asked for with --rows, in the order in which it is measured.
ROWS = ("requests", "streams", "connections", "memory", "processes")


@dataclass(frozen=True, slots=True)
class Extent:
    """Times in seconds, of the measured windows; what warms up comes before them."""

    rounds: int = 3
    request_seconds: float = 4.0
    stream_seconds: float = 4.0
    connections: int = 64
    many_connections: tuple[int, ...] = (1024, 4096)
    many_seconds: float = 2.5
    streams: tuple[int, ...] = (64, 256)
    idle_connections: int = 2000
    held_streams: int = 500


FULL = Extent()
QUICK = Extent(rounds=1, request_seconds=2.0, stream_seconds=2.5, many_seconds=2.0)
