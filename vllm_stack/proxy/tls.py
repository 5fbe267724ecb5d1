"""TLS on the public door: a client's connection with the face of the gevent socket it stands for.

Theory of operation. OpenSSL never touches the socket: it works on memory, and we move the bytes. So
the connection is a `channel.Channel` like any other, whose raw socket is a `_RawTls`: it raises
`BlockingIOError` where a socket would, and leaves nothing decrypted behind, so that a descriptor that
is not readable has nothing to say. Only the handshake and the close wait, in the connection's
greenlet: they are `TlsSocket`'s.

What was encrypted but not sent cannot be taken back: the raw side holds the rest of one piece, and
the hub sends it on as the client takes it; until then `send` refuses more. So memory is bounded, and
a client that takes nothing blocks its sender just like a full socket does.
"""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
from gevent.socket import wait_read, wait_write

# Seconds a client has for its handshake, which is two round trips.
HANDSHAKE = 10.0
# Seconds the last piece of an answer may take to leave before the connection is closed behind it.
_LAST_WORDS = 60.0
# Ciphertext read at a time. With a record that was begun before (16 KiB) it stays below what callers
# ask for at once, 64 KiB.
_READ_SIZE = 32768
# Plaintext encrypted at a time: what is held at most.
_PIECE = 65536
_WRITABLE = 2  # libev's EV_WRITE


def accept_tls(sock: Any, context: ssl.SSLContext) -> TlsSocket | None:
    """Shake hands with a client just accepted; None, and the connection closed, if that fails.

    Only this client waits for it. One that speaks plain HTTP gets a TLS alert, as from any server.
    """
    client = TlsSocket(sock, context)
    try:
        client.handshake()
    except OSError:  # ssl.SSLError and TimeoutError are such
        client.abandon()
        return None
    return client


class TlsSocket:
    """A connection for `Channel` to take over after its `handshake`.

    `early` is what the client sent along with the end of its handshake: it has been read already.
    """

    def __init__(self, sock: Any, context: ssl.SSLContext) -> None:
        self._plain = sock
        self._sock = _RawTls(sock._sock, context)
        self.early = b""

    def handshake(self) -> None:
        """Become an encrypted connection; raises `OSError` if that fails or takes too long."""
        self._retry(self._sock.handshake, wait_read, HANDSHAKE)
        with contextlib.suppress(BlockingIOError):
            self.early = self._sock.recv(_READ_SIZE)

    def close(self) -> None:
        """Say goodbye, let what is left go out, and close."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(stdlib_socket.SHUT_WR)
            # A client that has not taken the last piece for so long already gets no more time.
            left = self._sock.taken_at + _LAST_WORDS - monotonic()
            self._retry(self._sock.drain, wait_write, max(0.0, left))
        self.abandon()

    def abandon(self) -> None:
        """Close at once."""
        self._sock.close()
        self._plain.close()

    def _retry(self, act: Callable[[], None], wait: Callable[[int], None], seconds: float) -> None:
        """Act, and wait as often as that would block; raises `TimeoutError` after `seconds`."""
        with gevent.Timeout(seconds, TimeoutError("timed out")):
            while True:
                try:
                    return act()
                except BlockingIOError:
                    wait(self._sock.fileno())


class _RawTls:
    """What `Channel` uses of a socket that never blocks, with TLS in between.

    `taken_at` is when the last piece was taken to be sent, by `time.monotonic`.
    """

    def __init__(self, raw: stdlib_socket.socket, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = bytearray()
        self._watcher = gevent.get_hub().loop.io(raw.fileno(), _WRITABLE)
        self._ended = False
        self._said_goodbye = False
        self.taken_at = monotonic()

    def fileno(self) -> int:
        return self._raw.fileno()

    def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                if not self._take():
                    raise ConnectionResetError("The client left in its handshake") from None
            finally:
                self._push()  # our part of it, or the alert that says why there is none

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Give all that has come, decrypted; empty at the client's end.

        With `MSG_PEEK` it tells only whether anything has come, and takes nothing.
        """
        if flags or (self._said_goodbye and not self._ended):
            # After our goodbye nobody reads it any more; it only must not be left unread.
            return self._raw.recv(size, flags)
        while not self._ended:
            data = self._decrypt()
            if data or self._ended:
                return data
            # Without a goodbye the end may be an attacker's. It cuts the request all the same, and
            # one that was cut is never taken for whole.
            self._ended = not self._take()
        return b""

    def send(self, data: bytes | memoryview) -> int:
        """Take the next piece of `data`, or raise `BlockingIOError` while one before has not gone out."""
        self.drain()
        piece = data[:_PIECE]
        self._tls.write(piece)
        self.taken_at = monotonic()
        self._push()
        return len(piece)

    def drain(self) -> None:
        """Raise `BlockingIOError` unless everything has gone out."""
        self._push()
        if self._unsent:
            raise BlockingIOError

    def shutdown(self, how: int) -> None:
        """End what we send with a goodbye, so that no client takes a cut for an end; or end it all."""
        self._say_goodbye()
        if how == stdlib_socket.SHUT_RDWR:
            self._ended = True
            self._raw.shutdown(how)

    def close(self) -> None:
        self._watcher.stop()
        self._watcher.close()

    def _take(self) -> bool:
        """Move what has come to OpenSSL; False at the end, `BlockingIOError` if there is nothing."""
        data = self._raw.recv(_READ_SIZE)
        self._incoming.write(data)
        return bool(data)

    def _decrypt(self) -> bytes:
        parts: list[bytes] = []
        try:
            while part := self._tls.read(_READ_SIZE):
                parts.append(part)
            self._ended = True
            # A goodbye, and perhaps no FIN: the descriptor has to stay readable, as at any other end.
            self._raw.shutdown(stdlib_socket.SHUT_RD)
        except ssl.SSLWantReadError:
            pass
        self._push()  # OpenSSL may have something to answer (a key update)
        return b"".join(parts)

    def _say_goodbye(self) -> None:
        if self._said_goodbye:
            return
        self._said_goodbye = True
        with contextlib.suppress(ssl.SSLError):  # it wants the client's goodbye, which we do not wait for
            self._tls.unwrap()
        self._push()

    def _push(self) -> None:
        """Send what the client takes now, and have the hub send the rest."""
        if self._outgoing.pending:
            self._unsent += self._outgoing.read()
        while self._unsent:
            try:
                sent = self._raw.send(self._unsent)
            except BlockingIOError:
                self._watcher.start(self._on_writable)
                return
            del self._unsent[:sent]
        self._watcher.stop()

    def _on_writable(self) -> None:
        try:
            self._push()
        except OSError:  # whoever sends next meets the same error
            self._watcher.stop()
            self._unsent.clear()
