"""gunicorn's gevent worker with our own connection loop on the public door.

gunicorn's stock loop costs 330-400 microseconds of CPU a request before the application does
anything; overriding `handle` is the one way around it that stays gunicorn and gevent. The admin
door goes through the stock path.
"""

from __future__ import annotations

import logging
import resource
import socket as stdlib_socket
from typing import Any

import gevent
from gunicorn.workers.ggevent import GeventWorker

from vllm_stack.program import parent_is_gone
from vllm_stack.proxy import admin, hooks
from vllm_stack.proxy.client import Client
from vllm_stack.proxy.door import Door
from vllm_stack.proxy.tls import accept_tls

# How `gunicorn.workers.base.Worker.handle_error` begins.
_INVALID = "Invalid request from ip="
# Seconds that a process retires at most; what is open then is cut.
RETIREMENT = 3600


class ProxyWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """One proxy process."""

    door: Door

    def init_process(self) -> None:
        """Set the process up after the fork, then serve until told to stop."""
        _raise_file_limit()
        logging.getLogger("gunicorn.error").addFilter(_unquoted)
        super().init_process()

    def run(self) -> None:
        """Open the door, and serve."""
        settings, board = hooks.shared()
        self._tls = hooks.tls_context()
        key_row = hooks.key_usage().row(self.scoreboard_row)
        self.door = Door(settings, board, board.row(self.scoreboard_row), key_row)
        admin.attach(self.door, hooks.reloads())
        self.door.open()
        self.door.row.serve()
        try:
            super().run()
        finally:
            self.door.finish()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection: our loop on the public door, gunicorn's on the admin door."""
        if listener.getsockname()[1] == self.door.settings.admin_port:
            super().handle(listener, client, addr)
            return
        client.setsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY, 1)
        # gunicorn would wrap the admin door, too, and shake hands before our deadlines hold.
        if self._tls is not None and (client := accept_tls(client, self._tls)) is None:
            return
        Client(self.door, client, addr[0]).serve()

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop gracefully, or retire when the master goes on without us."""
        super().handle_exit(sig, frame)
        # Not from within a signal handler, which may interrupt anything.
        gevent.get_hub().loop.run_callback_threadsafe(self._close_door)

    def _close_door(self) -> None:
        if not hasattr(self, "door"):
            return
        if hooks.shared()[1].ending or parent_is_gone(self.ppid):
            self.door.close()
        else:
            self.cfg.set("graceful_timeout", RETIREMENT)
            self.door.retire(RETIREMENT)


def _unquoted(record: logging.LogRecord) -> bool:
    """Leave out what gunicorn could not read at the admin door: it would quote it, were it a key."""
    if isinstance(record.msg, str) and record.msg.startswith(_INVALID):
        record.msg = record.msg.partition(": ")[0]
    return True


def _raise_file_limit() -> None:
    """Take all the descriptors the system allows: every stream needs two."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
