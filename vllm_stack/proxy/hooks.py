"""gunicorn's server hooks: what the master and its processes do around a fork."""

from __future__ import annotations

import logging
import os
import queue
import signal
import ssl
from pathlib import Path
from typing import Any

from vllm_stack.errors import StackError
from vllm_stack.native import PUMP
from vllm_stack.program import die_with_parent, parent_is_gone
from vllm_stack.proxy.models import lanes
from vllm_stack.proxy.scoreboard import Scoreboard
from vllm_stack.proxy.settings import ProxySettings, read_settings
from vllm_stack.tls_files import server_context

SETTINGS_VARIABLE = "VLLM_STACK_PROXY_JSON"

_shared: tuple[ProxySettings, Scoreboard] | None = None
_tls: ssl.SSLContext | None = None
_arbiter: Any = None


def shared() -> tuple[ProxySettings, Scoreboard]:
    """Give what the master made before it forked."""
    assert _shared is not None, "on_starting runs before any process is forked"  # noqa: S101
    return _shared


def tls_context() -> ssl.SSLContext | None:
    """Give the certificate of the public door, None where it speaks plain HTTP.

    It is the master's, so a client can resume its session with any of the processes.
    """
    return _tls


def check_settings(path: Path) -> None:
    """Read all that `on_starting` will read: where that fails, gunicorn would show a traceback.

    Raises `StackError` for a file of the operator's that is no good any more, else what
    `read_settings` raises.
    """
    settings = read_settings(path)
    if settings.tls:
        server_context(settings.tls)


def on_starting(arbiter: Any) -> None:
    """Read the settings once, and make the memory all processes will share."""
    global _shared, _tls
    settings = read_settings(Path(os.environ[SETTINGS_VARIABLE]))
    _tls = server_context(settings.tls) if settings.tls else None
    board = Scoreboard(settings.processes, len(settings.servers), lanes(settings.models))
    _shared = settings, board
    arbiter.log.info("Streams are relayed in %s", _language(settings))


def _language(settings: ProxySettings) -> str:
    if settings.tls:
        return "Python, because of TLS"
    return "C" if PUMP else "Python, without the part in C"


def on_reload(arbiter: Any) -> None:
    """Take a renewed certificate for the processes about to start; one that is no good changes nothing."""
    global _tls
    files = shared()[0].tls
    if files is None:
        return
    try:
        _tls = server_context(files)
    except StackError as error:
        logging.getLogger("gunicorn.error").error("The certificate of before stays in use: %s", error)


def pre_fork(arbiter: Any, worker: Any) -> None:
    """Reserve a row of the scoreboard for the process about to be forked."""
    worker.scoreboard_row = shared()[1].take_row()


def child_exit(arbiter: Any, worker: Any) -> None:
    """Clear the row of a process that has ended, however it ended."""
    shared()[1].give_back(worker.scoreboard_row)


def post_fork(arbiter: Any, worker: Any) -> None:
    """Tie the new process to its master: no listener may outlive it."""
    global _arbiter
    _arbiter = arbiter
    die_with_parent(signal.SIGTERM)
    if parent_is_gone(worker.ppid):
        os._exit(1)


def post_worker_init(worker: Any) -> None:
    """Heed a stop that came while the process still had its master's signal handlers.

    They only queue the signal, in a queue that nobody reads in the child (benoitc/gunicorn#1910);
    the process would then be killed at the end of the graceful timeout.
    """
    while True:
        try:
            signum = _arbiter.SIG_QUEUE.get_nowait()
        except queue.Empty:
            return
        if signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            worker.alive = False
