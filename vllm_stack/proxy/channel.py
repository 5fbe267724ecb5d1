"""One connected socket on the hub's loop: a watcher reads it, a greenlet waits for what it read.

Theory of operation. gevent's own socket costs a failed read, a timeout object and a watcher's start
and stop for every wait. Here the watcher stays on for the life of the connection and hands each
read to the `consumer`: the greenlet that waits in `receive`, or a function that works in the hub
(`relay.Relay`). While there is none, the watcher stops at the first readiness and the bytes stay
in the kernel: that is the back pressure. The timer is left running and looks at the deadline only
when it fires, so a wait that ends in time costs a comparison.
"""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub, getcurrent

READ_SIZE = 65536
WRITE_TIMEOUT = 60.0  # seconds for one piece of data, at most READ_SIZE or one whole request body
# Behind our end of a connection: how long (seconds), and how much, the other side may go on sending.
_LINGER = 2.0
_LINGER_BYTES = 1024 * 1024
_READ, _WRITE = 1, 2  # libev's EV_READ and EV_WRITE

# Called in the hub with what was read: empty at the end of the connection, None at the deadline.
Consumer = Callable[[bytes | None], Any]


class Channel:
    """A connection; takes over a connected gevent socket and closes it.

    `error` is what ended the connection, None while it lasts and after a clean end. `deadline` is
    when the consumer is told that nothing came, by `time.monotonic`; it may be moved later freely.
    `sent` are the bytes the other side was sent.
    """

    __slots__ = (
        "_between",
        "_consumer",
        "_early",
        "_fires",
        "_hub",
        "_reading",
        "_timer",
        "_watcher",
        "deadline",
        "error",
        "raw",
        "sent",
        "sock",
    )

    def __init__(self, sock: Any, between: Consumer | None = None) -> None:
        """Take over `sock`; `between` gets what arrives while nothing else is the consumer."""
        self.sock = sock
        # The socket under gevent's: never blocks, and calls on it switch no greenlet.
        self.raw: stdlib_socket.socket = sock._sock
        self.error: OSError | None = None
        self.sent = 0
        self._hub = get_hub()
        self._watcher = self._hub.loop.io(self.raw.fileno(), _READ)
        self._reading = False
        self._between = between
        self._consumer = between
        # What was read before anybody asked for it.
        self._early = b""
        self._timer: Any = None
        self.deadline = inf
        self._fires = inf

    def receive(self, timeout: float) -> bytes:
        """Wait for the next bytes; empty at the end of the connection, clean or not.

        Raises `TimeoutError` after `timeout` seconds.
        """
        if self._early:
            if not self._reading:
                self.watch()
            return self.take_early()
        # As `consume` does it; this runs for every wait.
        self._consumer = getcurrent().switch
        self.deadline = deadline = monotonic() + timeout
        if deadline < self._fires:
            self._arm(timeout)
        if not self._reading:
            self.watch()
        try:
            data: bytes | None = self._hub.switch()
        finally:
            self._consumer = self._between
            self.deadline = inf
        if data is None:
            raise TimeoutError
        return data

    def take_early(self) -> bytes:
        """Give what was read before anybody asked for it."""
        early, self._early = self._early, b""
        return early

    def consume(self, consumer: Consumer, timeout: float) -> None:
        """Hand what arrives from now on to `consumer`, and None after `timeout` seconds; until `release`."""
        self._consumer = consumer
        self.deadline = deadline = monotonic() + timeout
        if deadline < self._fires:
            self._arm(timeout)
        if not self._reading:
            self.watch()

    def hasten(self, timeout: float) -> None:
        """Have the wait in progress end after `timeout` seconds at the latest."""
        self.deadline = min(self.deadline, monotonic() + timeout)
        if self.deadline < self._fires:
            self._arm(timeout)

    def release(self) -> None:
        """End what `consume` began."""
        self._consumer = self._between
        self.deadline = inf

    def shortcut(self, callback: Callable[[], Any] | None) -> None:
        """Have `callback` read in our place while there is a consumer; with None we read again.

        What it has read but is not for it to pass on, it gives to `took`.
        """
        self._watcher.callback = callback or self._on_readable  # type: ignore[attr-defined]

    def watch(self) -> None:
        """Read from now on."""
        self._reading = True
        self._watcher.start(self._on_readable)

    def pause(self) -> None:
        """Leave what arrives in the kernel, until the next `consume`."""
        self._reading = False
        self._watcher.stop()

    def send(self, data: bytes | memoryview) -> None:
        """Send all of `data`; raises `OSError`, also when it is not taken within `WRITE_TIMEOUT`."""
        try:
            sent = self.raw.send(data)
        except BlockingIOError:
            sent = 0
        self.sent += sent
        if sent < len(data):
            self.send_rest(memoryview(data)[sent:])

    def send_rest(self, data: memoryview | bytes) -> None:
        """Send what the socket's buffer did not take at once; raises `OSError` as `send` does."""
        data = memoryview(data)
        watcher = self._hub.loop.io(self.raw.fileno(), _WRITE)
        try:
            with gevent.Timeout(WRITE_TIMEOUT, TimeoutError("Nothing was taken in time")):
                while data:
                    self._hub.wait(watcher)
                    try:
                        sent = self.raw.send(data)
                    except BlockingIOError:
                        continue
                    self.sent += sent
                    data = data[sent:]
        finally:
            watcher.close()

    def linger(self) -> None:
        """Let the other side have all that was sent: closing with unread bytes would reset it away."""
        with contextlib.suppress(OSError):
            self.raw.shutdown(stdlib_socket.SHUT_WR)
            deadline = monotonic() + _LINGER
            taken = 0
            while taken < _LINGER_BYTES and (left := deadline - monotonic()) > 0:
                data = self.receive(left)
                if not data:
                    return
                taken += len(data)

    def abort(self) -> None:
        """End it from anywhere, a hub callback included: whoever waits on it sees its end."""
        try:
            self.raw.shutdown(stdlib_socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        self._consumer = self._between = None
        self._watcher.stop()
        self._watcher.close()
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self.sock.close()

    def _on_readable(self) -> None:
        consumer = self._consumer
        if consumer is None:
            self.pause()
            return
        try:
            data = self.raw.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            self.error = error
            data = b""
        if not data:
            self.pause()  # the end stays readable for ever
        consumer(data)

    def took(self, data: bytes, number: int) -> None:
        """Hand on what a shortcut has read: empty at the end, which was an error unless `number` is 0."""
        if number:
            self.error = OSError(number, os.strerror(number))
        if not data:
            self.pause()
        if self._consumer is not None:
            self._consumer(data)

    def _arm(self, timeout: float) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
        self._fires = monotonic() + timeout
        self._timer = self._hub.loop.timer(timeout)
        self._timer.start(self._on_time)

    def _on_time(self) -> None:
        """Tell the consumer if its deadline has passed; it may have moved on since the timer was set."""
        self._fires = inf
        left = self.deadline - monotonic()
        if self._consumer is None or left == inf:
            return
        if left > 0:
            self._arm(left)
        else:
            self.deadline = inf
            self._consumer(None)
