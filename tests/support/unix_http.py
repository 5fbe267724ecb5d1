"""An HTTP client for a server on a port of this machine, or on a unix socket."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path

Where = int | Path


def connection_to(where: Where, timeout: float) -> http.client.HTTPConnection:
    """Give a connection, not opened yet, to a port of 127.0.0.1 or to a socket's path."""
    if isinstance(where, int):
        return http.client.HTTPConnection("127.0.0.1", where, timeout=timeout)
    return _UnixConnection(where, timeout)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
