"""`vllm-stack down`: stop everything, and see to it that nothing is left."""

from __future__ import annotations

import contextlib
import time
import xmlrpc.client
from pathlib import Path

import click
import psutil

from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.errors import StackError
from vllm_stack.leftovers.processes import lives

_TICK = 0.1


def stop_stack(out: Path) -> None:
    """Stop the stack in `out`; raises `StackError` when a process of it cannot be ended."""
    stack = find_stack(out)
    supervisord = _supervisord(stack)
    if supervisord is None:
        click.echo("supervisord is not running.")
    else:
        click.echo("Stopping: the proxy first, so that open answers can end, then the workers...")
        with contextlib.suppress(xmlrpc.client.Fault, OSError):
            stack.supervisor.call("shutdown")
        _await_end(supervisord, stack.stop_seconds + 15)
    stack.sweep(lambda line: click.echo(f"  {line}"))
    click.echo("Stopped. No process of the stack is left.")


def _supervisord(stack: Stack) -> psutil.Process | None:
    """Find supervisord by its own word, or by its pid file while it shuts down and answers nothing."""
    pid = stack.supervisor.pid()
    if pid == 0:
        try:
            pid = int(stack.layout.pidfile.read_text("ascii"))
        except (OSError, ValueError):
            pid = None
    try:
        return psutil.Process(pid) if pid else None
    except psutil.NoSuchProcess:
        return None


def _await_end(process: psutil.Process, timeout: float) -> None:
    begun = time.monotonic()
    told = begun
    while True:
        if not lives(process):
            return
        time.sleep(_TICK)
        now = time.monotonic()
        if now - begun > timeout:
            raise StackError(
                f"supervisord (process {process.pid}) is still there after {timeout:.0f} s: "
                "see its log in the stack's logs/"
            )
        if now - told > 5:
            told = now
            click.echo(f"  still stopping after {now - begun:.0f} s")
