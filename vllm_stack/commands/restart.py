"""A worker that is restarted on purpose, and watched until it is ready."""

from __future__ import annotations

import time
import xmlrpc.client
from collections.abc import Callable
from contextlib import suppress

import click

from vllm_stack.commands.stack import Stack
from vllm_stack.commands.watch_workers import LOOK_EVERY, SPEAK_EVERY, failure_of, log_tail, look_at
from vllm_stack.errors import StackError
from vllm_stack.layout import phase_note
from vllm_stack.records.phase import Phase, read_phase
from vllm_stack.worker.failure import Failure
from vllm_stack.worker.probe import Probe

# States of supervisord's in which nothing runs.
_GONE = ("STOPPED", "EXITED", "FATAL", "UNKNOWN")


def restart(stack: Stack, name: str, meanwhile: Callable[[], object], timeout: float) -> None:
    """Stop a worker, do something while it is stopped, start it, and wait until it is ready.

    Whatever ends this, the worker is started. Raises `StackError` if it does not stop, fails, or is not
    ready within `timeout` seconds; what supervisord's RPC raises; and what `meanwhile` does.
    """
    failure, note = failure_of(stack, name), read_phase(phase_note(stack.layout.state, name))
    program = f"workers:{name}"
    try:
        with suppress(xmlrpc.client.Fault):  # it does not run
            stack.supervisor.call("stopProcess", program, False)
        _wait_stopped(stack, program)
        meanwhile()
    finally:  # whatever happens to us: a stopped worker must not stay so
        try:
            _start(stack, program)
        except KeyboardInterrupt:  # which comes but once (`ending_once`)
            _start(stack, program)
            raise
    _wait_ready(stack, name, failure, note.since if note is not None else 0.0, timeout)


def _start(stack: Stack, program: str) -> None:
    """Start a program, as soon as it has stopped: supervisord takes an earlier word and does nothing."""
    end = time.monotonic() + stack.stop_seconds
    while time.monotonic() < end:
        try:
            stack.supervisor.call("startProcess", program, False)
            info = stack.supervisor.call("getProcessInfo", program)
            if info["statename"] not in ("STOPPING", *_GONE):
                return
        except xmlrpc.client.Fault:  # it runs, or supervisord itself stops
            return
        except OSError:
            if not stack.supervisord_runs():
                return
        time.sleep(0.1)


def _wait_stopped(stack: Stack, program: str) -> None:
    end = time.monotonic() + stack.stop_seconds
    while time.monotonic() < end:
        info = stack.supervisor.call("getProcessInfo", program)
        if info["statename"] in _GONE:
            return
        time.sleep(0.1)
    raise StackError(f"{program} did not stop within {stack.stop_seconds} s")


def _wait_ready(stack: Stack, name: str, before: Failure | None, since: float, timeout: float) -> None:
    """Wait until a life that began after `since` says it is ready; a failure ends the wait."""
    begun, spoken, said = time.monotonic(), 0.0, ""
    probe = Probe(name, stack.workers[name], stack.admin_port)
    while True:
        note = read_phase(phase_note(stack.layout.state, name))
        if note is not None and note.phase is Phase.READY and note.since > since and not probe.health():
            click.echo(f"{time.monotonic() - begun:4.0f} s  {name}  ready")
            return
        failure = failure_of(stack, name)
        if failure is not None and failure != before:
            for line in log_tail(stack, name):
                click.echo(line, err=True)
            raise StackError(f"{name} failed: {failure.story}. It will be started again")
        elapsed = time.monotonic() - begun
        if elapsed > timeout:
            raise StackError(f"{name} is not ready after {elapsed:.0f} s")
        sight = look_at({}, stack, name)
        if sight.state != said or elapsed - spoken >= SPEAK_EVERY:
            said, spoken = sight.state, elapsed
            click.echo(sight.line(elapsed))
        time.sleep(LOOK_EVERY)
