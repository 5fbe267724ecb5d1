"""Opening a connection to a server, wherever it listens."""

from __future__ import annotations

import gevent
from gevent import socket

from vllm_stack.address import Address, UnixAddress

CONNECT_TIMEOUT = 5.0
# Seconds. Nobody sends a FIN for a box that lost its power or its cable: these many without a sign of
# it end a connection. On this machine the kernel always tells.
_DEAD_AFTER = 30
_PROBE_AFTER = 10


def dial(address: Address) -> socket.socket:
    """Connect within `CONNECT_TIMEOUT` seconds; raises `OSError` when nobody listens.

    Looking up a name is part of that time and of those errors; it runs on gevent's threads and
    holds up nobody else.
    """
    if isinstance(address, UnixAddress):
        return _connect(address)
    with gevent.Timeout(CONNECT_TIMEOUT, TimeoutError(f"{address} did not answer")):
        sock = socket.create_connection(address.sockaddr) if address.is_name else _connect(address)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not address.is_loopback:
        _notice_death(sock)
    return sock


def _connect(address: Address) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_TIMEOUT)
        sock.connect(address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock


def _notice_death(sock: socket.socket) -> None:
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER * 1000),
    ):
        sock.setsockopt(level, option, value)
