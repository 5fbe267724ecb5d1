"""A TLS connection by itself, over a pair of sockets with hardly any room."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import gevent.socket
import pytest

from tests.support.certificates import make_certificate
from tests.support.polling import until
from vllm_stack.proxy import channel as channel_module
from vllm_stack.proxy import tls as tls_module
from vllm_stack.proxy.channel import Channel
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.tls import TlsSocket
from vllm_stack.tls_files import TlsFiles, server_context

DATA = bytes(range(256)) * 200  # 51 kB: one piece to encrypt, ten times what the socket takes


class Reader(threading.Thread):
    """A client that shakes hands, waits, and then reads to the end."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, wait: float) -> None:
        super().__init__(daemon=True)
        self.got = b""
        self.goodbye = False
        self._sock, self._context, self._wait = sock, context, wait

    def run(self) -> None:
        with self._context.wrap_socket(
            self._sock, server_hostname="localhost", suppress_ragged_eofs=False
        ) as tls:
            time.sleep(self._wait)
            while data := tls.recv(1000):
                self.got += data
            self.goodbye = True


class Writer:
    """A client that says what it is told to, when it is told to."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self._sock = gevent.socket.socket(fileno=sock.detach())
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def shake_hands(self, and_say: bytes = b"") -> None:
        """Send the end of the handshake and what follows it in one packet."""
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._sock.sendall(self._outgoing.read())
                self._incoming.write(self._sock.recv(65536))
        self.say(and_say)

    def say(self, data: bytes) -> None:
        if data:
            self._tls.write(data)
        self._sock.sendall(self._outgoing.read())

    def close(self) -> None:
        self._sock.close()


@pytest.fixture
def ends(tmp_path: Path) -> tuple[TlsSocket, socket.socket, ssl.SSLContext]:
    """Our end, and what a client needs to make the other one."""
    files = make_certificate(tmp_path)
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    plain = gevent.socket.socket(fileno=ours.detach())
    return TlsSocket(plain, server_context(TlsFiles(files.certificate, files.key))), theirs, files.client


@pytest.fixture
def pair(ends: tuple[TlsSocket, socket.socket, ssl.SSLContext]) -> Iterator[tuple[Channel, Reader]]:
    server, theirs, context = ends
    reader = Reader(theirs, context, wait=0.3)
    reader.start()
    server.handshake()
    yield Channel(server), reader
    reader.join(5)


@pytest.mark.parametrize("data", [DATA, DATA * 10], ids=["one piece", "many"])
def test_what_was_sent_before_a_close_arrives_and_so_does_the_goodbye(
    pair: tuple[Channel, Reader], data: bytes
) -> None:
    server, reader = pair
    server.send(data)
    server.close()
    reader.join(5)
    assert (reader.got == data, reader.goodbye) == (True, True)


def test_the_hub_sends_on_what_the_socket_did_not_take(pair: tuple[Channel, Reader]) -> None:
    """A callback of the relay hands over one read and cannot wait; the next one is told to."""
    server, reader = pair
    assert server.raw.send(DATA) == len(DATA)
    with pytest.raises(BlockingIOError):
        server.raw.send(b"more")
    until(lambda: len(reader.got) >= len(DATA), 5, "all has arrived", pause=gevent.sleep)
    assert reader.got == DATA
    server.close()


def test_no_more_than_a_piece_is_held(pair: tuple[Channel, Reader]) -> None:
    server, _ = pair
    assert server.raw.send(DATA * 10) < 2 * len(DATA)
    server.close()


def test_a_client_that_takes_nothing_is_given_up_in_time(
    pair: tuple[Channel, Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time it had for the last piece is not given twice."""
    monkeypatch.setattr(channel_module, "WRITE_TIMEOUT", 0.1)
    monkeypatch.setattr(tls_module, "_LAST_WORDS", 0.1)
    server, reader = pair
    with pytest.raises(TimeoutError):
        server.send(DATA * 10)
    begun = time.monotonic()
    server.close()
    assert time.monotonic() - begun < 0.05
    reader.join(5)
    assert not reader.goodbye


def test_a_request_that_comes_with_the_end_of_the_handshake_is_read(
    ends: tuple[TlsSocket, socket.socket, ssl.SSLContext],
) -> None:
    """Nothing is left in the socket then: no watcher would ever tell of it."""
    server, theirs, context = ends
    client = Writer(theirs, context)
    shaking = gevent.spawn(client.shake_hands, and_say=b"GET / HTTP/1.1")
    server.handshake()
    shaking.join()
    peer = Peer(server, "127.0.0.1")
    assert peer.receive(1) == b"GET / HTTP/1.1"
    client.say(b"\r\n")
    assert peer.receive(1) == b"\r\n"
    client.close()
    assert peer.receive(1) == b""
    peer.close()


def test_a_peek_takes_nothing(ends: tuple[TlsSocket, socket.socket, ssl.SSLContext]) -> None:
    server, theirs, context = ends
    client = Writer(theirs, context)
    shaking = gevent.spawn(client.shake_hands)
    server.handshake()
    shaking.join()
    channel = Channel(server)
    with pytest.raises(BlockingIOError):
        channel.raw.recv(1, socket.MSG_PEEK)
    client.say(b"a request")
    assert channel.raw.recv(1, socket.MSG_PEEK)
    assert channel.receive(1) == b"a request"
    client.close()
    channel.close()


@pytest.fixture(autouse=True)
def _quiet_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of a connection that was cut ends with an error of its own."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
