"""A tunnel by itself, between two pairs of sockets with hardly any room."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import gevent
import gevent.select
import gevent.socket
import pytest

from tests.support.polling import throughout, until
from vllm_stack.proxy import channel as channel_module
from vllm_stack.proxy.failures import ClientGone
from vllm_stack.proxy.peer import Peer
from vllm_stack.proxy.tunnel import Tunnel
from vllm_stack.proxy.upstream import Upstream

HEAD = b"the head of the switch"
LARGE = bytes(range(256)) * 4000  # a hundred times what the sockets hold


def pair() -> tuple[Any, Any]:
    ends = socket.socketpair()
    for sock in ends:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    ours, theirs = (gevent.socket.socket(socket.AF_UNIX, fileno=sock.detach()) for sock in ends)
    theirs.settimeout(5)
    return ours, theirs


class Both:
    """A client, a worker, and the tunnel between them."""

    def __init__(self) -> None:
        near, self.client = pair()
        far, self.worker = pair()
        self.peer, self.upstream = Peer(near, "127.0.0.1"), Upstream(far)
        self.tunnel: gevent.Greenlet[..., None] | None = None

    def open(self, silence: float = 30) -> gevent.Greenlet[..., None]:
        self.tunnel = gevent.spawn(Tunnel(self.peer, self.upstream, silence).run, HEAD)
        return self.tunnel

    def close(self) -> None:
        if self.tunnel is not None:
            self.tunnel.kill()
        for end in (self.peer, self.upstream, self.client, self.worker):
            end.close()


@pytest.fixture
def both() -> Iterator[Both]:
    both = Both()
    yield both
    both.close()


def read(sock: Any, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def is_full(sock: Any) -> bool:
    """What was sent waits all the way back to here, and goes on waiting."""
    return not gevent.select.select([], [sock], [], 0.1)[1]


def ends_after(tunnel: gevent.Greenlet[..., None]) -> float:
    start = monotonic()
    tunnel.get(timeout=5)
    return monotonic() - start


def test_what_the_client_said_early_goes_first(both: Both) -> None:
    both.peer.unread(b"second, ")
    both.peer.unread(b"first, ")
    both.open()
    assert read(both.client, len(HEAD)) == HEAD
    both.client.sendall(b"third")
    assert read(both.worker, 20) == b"first, second, third"


def test_much_passes_whole_both_ways_though_neither_side_has_room(both: Both) -> None:
    both.open()
    sends = [gevent.spawn(sock.sendall, LARGE) for sock in (both.client, both.worker)]
    reads = [gevent.spawn(read, both.client, len(HEAD + LARGE)), gevent.spawn(read, both.worker, len(LARGE))]
    gevent.joinall([*sends, *reads], timeout=10)
    assert [each.exception for each in (*sends, *reads)] == [None] * 4
    assert [each.value for each in reads] == [HEAD + LARGE, LARGE]


@pytest.mark.parametrize("side", ["client", "worker"])
def test_the_end_of_a_side_comes_behind_all_that_it_had_sent(both: Both, side: str) -> None:
    leaver, stayer = (both.client, both.worker) if side == "client" else (both.worker, both.client)
    tunnel = both.open()
    read(both.client, len(HEAD))
    got = gevent.spawn(read, stayer, len(LARGE))
    leaver.sendall(LARGE)
    leaver.shutdown(socket.SHUT_WR)
    tunnel.get(timeout=5)
    both.peer.close()
    both.upstream.close()
    assert got.get(timeout=5) == LARGE


@pytest.mark.parametrize("side", ["client", "worker"])
def test_a_side_that_takes_nothing_in_time_is_given_up(
    both: Both, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "WRITE_TIMEOUT", 0.3)
    tunnel = both.open()
    read(both.client, len(HEAD))
    talker = both.worker if side == "client" else both.client
    talking = gevent.spawn(talker.sendall, LARGE)
    assert 0.2 < ends_after(tunnel) < 2
    talking.kill()


def test_a_client_that_does_not_take_the_head_is_gone(both: Both) -> None:
    both.client.close()
    with pytest.raises(ClientGone):
        both.open().get(timeout=5)


@pytest.mark.parametrize("speaks", [lambda both: both.client, lambda both: both.worker])
def test_it_lasts_while_one_side_speaks_and_ends_when_both_are_silent(
    both: Both, speaks: Callable[[Both], Any]
) -> None:
    tunnel = both.open(silence=0.4)
    for _ in range(8):
        speaks(both).sendall(b"x")
        gevent.sleep(0.1)
    assert not tunnel.ready()
    assert 0.1 < ends_after(tunnel) < 1


def test_the_last_words_of_a_worker_that_takes_no_more_arrive(both: Both) -> None:
    """It said why and hung up; the client's next message finds that out before the words were read."""
    tunnel = both.open()
    read(both.client, len(HEAD))
    both.client.sendall(b"first")
    read(both.worker, 5)
    blocked = gevent.spawn(both.worker.sendall, LARGE)  # the client reads nothing yet
    until(lambda: is_full(both.worker), 5, "nothing more goes in", pause=gevent.sleep)
    blocked.kill()
    both.worker.close()
    both.client.sendall(b"second")
    throughout(lambda: not tunnel.ready(), 0.1, "the words are on their way", pause=gevent.sleep)
    taken = b""
    while more := gevent.with_timeout(1, both.client.recv, 65536, timeout_value=b""):
        taken += more
    assert len(taken) > 8192
    assert LARGE.startswith(taken)
    tunnel.get(timeout=1)


def test_nothing_goes_on_once_it_has_ended(both: Both) -> None:
    """One side ends while the other one's socket is full."""
    tunnel = both.open()
    talking = gevent.spawn(both.worker.sendall, LARGE)
    until(lambda: is_full(both.worker), 5, "nothing more goes in", pause=gevent.sleep)
    both.client.shutdown(socket.SHUT_WR)
    assert ends_after(tunnel) < 1
    taken = 0
    while more := gevent.with_timeout(0.2, both.client.recv, 65536, timeout_value=b""):
        taken += len(more)
    assert 0 < taken < 65536
    talking.kill()
