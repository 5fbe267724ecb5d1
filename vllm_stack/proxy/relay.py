"""Streaming one answer from a worker to a client, without waking a greenlet for every event.

A watcher on the hub's loop reads from the worker and writes to the client in its callback; the
request's greenlet sleeps until the answer has ended one way or another. Only when the client's
socket is full does the greenlet take over: it stops reading, so memory stays bounded, and drops a
client that takes nothing for `WRITE_TIMEOUT`.
"""

from __future__ import annotations

import time
from typing import Any

import gevent
from gevent.event import AsyncResult

from vllm_stack.proxy.failures import Broken, ClientGone, Silent, UpstreamFailure
from vllm_stack.proxy.framing import Framing
from vllm_stack.proxy.upstream import Upstream

READ_SIZE = 65536
WRITE_TIMEOUT = 60.0


class Relay:
    """One body on its way. Raises `UpstreamFailure` or `ClientGone` from `run`."""

    def __init__(self, client: Any, upstream: Upstream, framing: Framing, silence: float) -> None:
        self._client = client
        self._raw_client = client._sock
        self._upstream = upstream
        self._framing = framing
        self._silence = silence
        self._wake: AsyncResult[None] = AsyncResult()
        self._unsent = b""
        self._watcher = gevent.get_hub().loop.io(upstream.raw.fileno(), 1)
        self._last = time.monotonic()
        self.sent = False

    def run(self, first: bytes, head: bytes) -> None:
        """Send `head` and what is there of the body, then all that follows, until its end."""
        out = self._framing.feed(first) if first else b""
        if self._framing.failure is not None and not out:
            raise self._framing.failure
        self._send_all(head + out)
        self._raise_failure()
        try:
            while not self._framing.done:
                self._sleep()
        finally:
            self._watcher.stop()
            self._watcher.close()

    def _sleep(self) -> None:
        """Let the watcher work until something needs the greenlet."""
        self._wake = AsyncResult()
        self._watcher.start(self._on_readable)
        try:
            self._wait()
        finally:
            self._watcher.stop()
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._send_all(unsent)
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._framing.failure is not None:
            raise self._framing.failure

    def _wait(self) -> None:
        while True:
            left = self._last + self._silence - time.monotonic()
            if left <= 0:
                raise Silent("The worker stopped in the middle of its answer")
            try:
                self._wake.get(timeout=left)
            except gevent.Timeout:
                continue
            return

    def _on_readable(self) -> None:
        """Move what is there; runs in the hub and must neither block nor raise."""
        try:
            if self._move():
                self._watcher.stop()
                self._wake.set(None)
        except (UpstreamFailure, ClientGone) as failure:
            self._watcher.stop()
            self._wake.set_exception(failure)
        except Exception as bug:  # in the hub it would end up in a log, and the client would hang
            self._watcher.stop()
            self._wake.set_exception(bug)

    def _move(self) -> bool:
        """Move one read; True when the greenlet is needed: the end, or a full client socket."""
        try:
            data = self._upstream.raw.recv(READ_SIZE)
        except BlockingIOError:
            return False
        except OSError as error:
            raise Broken(f"The connection to the worker broke: {error.strerror}") from None
        self._last = time.monotonic()
        out = self._framing.feed(data) if data else self._framing.end()
        if out:
            try:
                sent = self._raw_client.send(out)
            except BlockingIOError:
                sent = 0
            except OSError:
                raise ClientGone from None
            if sent < len(out):
                self._unsent = out[sent:]
                return True
        return self._framing.done or self._framing.failure is not None

    def _send_all(self, data: bytes) -> None:
        if not data:
            return
        self.sent = True
        self._client.settimeout(WRITE_TIMEOUT)
        try:
            self._client.sendall(data)
        except OSError:
            raise ClientGone from None
