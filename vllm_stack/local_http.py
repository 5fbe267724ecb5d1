"""HTTP to a server of this machine, over a port or a unix socket, with the standard library alone."""

from __future__ import annotations

import http.client
import socket

from vllm_stack.address import Address


class LocalConnection(http.client.HTTPConnection):
    """One connection; each wait on it ends after `timeout` seconds."""

    def __init__(self, address: Address, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        self.sock = socket.socket(self._address.family, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._address.sockaddr)


def fetch(address: Address, path: str, timeout: float) -> tuple[int, bytes]:
    """Get a path; gives the status and the whole body. Raises `OSError` or `HTTPException`."""
    connection = LocalConnection(address, timeout)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
