"""gunicorn's server hooks: what the master and its processes do around a fork."""

from __future__ import annotations

import logging
import os
import queue
import signal
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.errors import StackError
from vllm_stack.keys.store import present_keys
from vllm_stack.native import PUMP
from vllm_stack.program import die_with_parent, parent_is_gone
from vllm_stack.proxy.key_usage import KeyUsage
from vllm_stack.proxy.models import lanes
from vllm_stack.proxy.scoreboard import Scoreboard
from vllm_stack.proxy.settings import ProxySettings, read_settings
from vllm_stack.tls_files import server_context

SETTINGS_VARIABLE = "VLLM_STACK_PROXY_JSON"

_shared: tuple[ProxySettings, Scoreboard] | None = None
_key_usage: KeyUsage | None = None
_tls: ssl.SSLContext | None = None
_arbiter: Any = None


@dataclass(frozen=True, slots=True)
class Reloads:
    """How often the master was told to reload, and what was no good about the last time."""

    count: int
    trouble: str | None


_reloads = Reloads(0, None)


def reloads() -> Reloads:
    """Tell of the reloads before this process was forked."""
    return _reloads


def shared() -> tuple[ProxySettings, Scoreboard]:
    """Give what the master made before it forked."""
    assert _shared is not None, "on_starting runs before any process is forked"  # noqa: S101
    return _shared


def key_usage() -> KeyUsage:
    """Give the memory in which all processes count what keys use."""
    assert _key_usage is not None, "on_starting runs before any process is forked"  # noqa: S101
    return _key_usage


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
    present_keys(settings.keys.named)
    if settings.tls:
        server_context(settings.tls)


def on_starting(arbiter: Any) -> None:
    """Read the settings once, and make the memory all processes will share."""
    global _shared, _key_usage, _tls
    settings = read_settings(Path(os.environ[SETTINGS_VARIABLE]))
    _tls = server_context(settings.tls) if settings.tls else None
    board = Scoreboard(settings.processes, len(settings.servers), lanes(settings.models))
    _shared = settings, board
    _key_usage = KeyUsage(board.rows)
    arbiter.log.info("Streams are relayed in %s", _language(settings))


def _language(settings: ProxySettings) -> str:
    if settings.tls:
        return "Python, because of TLS"
    return "C" if PUMP else "Python, without the part in C"


def on_reload(arbiter: Any) -> None:
    """Read the settings anew, and a renewed certificate, for the processes about to start.

    What is no good changes nothing.
    """
    global _shared, _tls, _reloads
    before, board = shared()
    troubles = []
    settings = before
    try:
        settings = _reshaped(before, read_settings(Path(os.environ[SETTINGS_VARIABLE])))
    except (StackError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        troubles.append(f"The settings of before stay in use: {error or repr(error)}")
    try:
        _tls = server_context(settings.tls) if settings.tls else None
    except StackError as error:
        troubles.append(f"The certificate of before stays in use: {error}")
    for trouble in troubles:
        logging.getLogger("gunicorn.error").error(trouble)
    _shared = settings, board
    _reloads = Reloads(_reloads.count + 1, "; ".join(troubles) or None)
    board.reloads = _reloads.count


def _reshaped(before: ProxySettings, after: ProxySettings) -> ProxySettings:
    if after.shape != before.shape:
        raise StackError("other servers, or other processes, need a new start")
    return after


def pre_fork(arbiter: Any, worker: Any) -> None:
    """Reserve a row of the scoreboard for the process about to be forked, if there is one."""
    worker.scoreboard_row = shared()[1].take_row()
    if worker.scoreboard_row is not None:
        key_usage().expect(worker.scoreboard_row)


def child_exit(arbiter: Any, worker: Any) -> None:
    """Clear the row of a process that has ended, however it ended."""
    if worker.scoreboard_row is not None:
        key_usage().clear(worker.scoreboard_row)
        shared()[1].give_back(worker.scoreboard_row)


def post_fork(arbiter: Any, worker: Any) -> None:
    """Tie the new process to its master: no listener may outlive it."""
    global _arbiter
    _arbiter = arbiter
    die_with_parent(signal.SIGTERM)
    if parent_is_gone(worker.ppid):
        os._exit(1)
    if worker.scoreboard_row is None:  # the master tries again
        os._exit(0)


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
