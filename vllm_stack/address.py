"""Where a server listens: a host and a port, or a unix socket; one spelling for files and screens."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"
_UNIX = "unix:"
# What listens on all addresses is found on loopback.
_ANY = {"0.0.0.0": LOOPBACK, "::": "::1"}  # noqa: S104 - it is read, nothing listens by it


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A port of a host; the host is a name, or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    @property
    def sockaddr(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def is_loopback(self) -> bool:
        """Whether it is certainly this very machine."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def is_name(self) -> bool:
        """A name must be looked up first, which takes its time and can fail."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return True
        return False


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket, by its absolute path."""

    path: str

    def __str__(self) -> str:
        return _UNIX + self.path

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_UNIX

    @property
    def sockaddr(self) -> str:
        return self.path


Address = TcpAddress | UnixAddress


def seen_from_here(host: str) -> str:
    """Give the host by which a client on this machine reaches what is bound to `host`."""
    return _ANY.get(host, host)


def parse_address(text: str) -> Address:
    """Read what `str` of an address gave; raises `ValueError` for anything else."""
    if text.startswith(_UNIX + "/"):
        return UnixAddress(text.removeprefix(_UNIX))
    host, colon, port = text.rpartition(":")
    if not host or not colon:
        raise ValueError(f"{text!r} is not an address")
    return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))
