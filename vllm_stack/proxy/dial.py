"""Opening a connection to a server, wherever it listens."""

from __future__ import annotations

from gevent import socket

from vllm_stack.address import Address, UnixAddress

CONNECT_TIMEOUT = 5.0


def dial(address: Address) -> socket.socket:
    """Connect within `CONNECT_TIMEOUT` seconds; raises `OSError` when nobody listens."""
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(address.sockaddr)
        if not isinstance(address, UnixAddress):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock
