"""Asking the workers how they are: often while they are out, now and then while they are in."""

from __future__ import annotations

from collections.abc import Sequence

import gevent
from gevent import socket

from vllm_stack.proxy.backends import Backend

# Seconds. A worker that is out is looked at often: its return is what clients wait for.
INTERVAL_OUT = 0.5
INTERVAL_IN = 2.0
TIMEOUT = 5.0
# A stopping worker waits `worker.life.NOTICE` seconds after its notice: more than two of these.
NOTICE_INTERVAL = 0.2
# A busy server may be slow to answer (long prompts are tokenised on its event loop): one late
# answer is no illness. Only a refused or broken connection, or a 503, counts at once.
LATE_ANSWERS = 3


def watch(backend: Backend) -> None:
    """Keep `backend.ready` true to what its /health says; runs for ever, one greenlet a worker."""
    late = 0
    while True:
        backend.look.clear()
        state = probe(backend.address)
        if backend.is_stopping():
            state = "stopping" if state == "ready" else "stopped"
        late = late + 1 if state == "late" else 0
        if state == "ready":
            backend.mark(True, state)
        elif state != "late" or late >= LATE_ANSWERS or not backend.ready:
            backend.mark(False, state)
        backend.pool.expire()
        backend.look.wait(INTERVAL_IN if backend.ready else INTERVAL_OUT)


def watch_notices(backends: Sequence[Backend]) -> None:
    """Take a worker that announces its stop out of the choice before it begins to refuse; for ever."""
    while True:
        for backend in backends:
            if backend.ready and backend.is_stopping():
                backend.suspect("stopping")
        gevent.sleep(NOTICE_INTERVAL)


def probe(address: tuple[str, int]) -> str:
    """Ask /health once and say in a word what came: ready, ill, late, or not listening."""
    request = b"GET /health HTTP/1.1\r\nhost: worker\r\nconnection: close\r\n\r\n"
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        with gevent.Timeout(TIMEOUT):
            sock.connect(address)
            sock.sendall(request)
            answer = b""
            while b"\r\n" not in answer and (data := sock.recv(4096)):
                answer += data
    except gevent.Timeout:
        return "late"
    except OSError:
        return "not listening"
    finally:
        sock.close()
    return "ready" if answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")) else "ill"
