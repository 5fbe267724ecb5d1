"""`vllm-stack roll`: restart a running stack, one worker at a time, so that no request fails.

For each worker: nothing new to it, what it works on ends, restart with the options as they are rendered,
ready, one request to warm it up, back in the choice. What happens is in files (`drain_order`,
`roll.record`), so a roll that is killed at any moment leaves a stack that serves, and `roll` finishes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psutil

from vllm_stack.commands.drain import (
    check_gap,
    wait_drained,
    wait_open,
    withdraw_order,
    writing_orders,
)
from vllm_stack.commands.restart import restart
from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.commands.standing import ask_reloads, server_named
from vllm_stack.commands.watch_workers import LOOK_EVERY
from vllm_stack.drill.interrupts import ending_once
from vllm_stack.errors import NoStack, StackError, UsageError
from vllm_stack.layout import drain_order
from vllm_stack.records.drain_order import Reason, give_order, read_order
from vllm_stack.records.in_force import adopt, fingerprint_of, kept_options
from vllm_stack.roll.changes import Rendered, obstacles
from vllm_stack.roll.record import RollRecord, begin_or_go_on, read_roll, write_roll
from vllm_stack.roll.warm_up import warm_up
from vllm_stack.user_name import user_name

PROXY = "proxy"
# Seconds for what takes the proxy two looks at a worker.
_READMISSION = 30.0
# Seconds in which new processes of the proxy are there and know the workers.
_RELOAD = 30.0


@dataclass(frozen=True, slots=True)
class RollOptions:
    """What the command line says; times in seconds."""

    out: Path
    names: tuple[str, ...]
    drain_timeout: float
    timeout: float
    allow_gap: bool
    anew: bool


class Unfit(StackError):
    """A worker came up and does not answer as it should: it must not get requests."""


def roll_stack(options: RollOptions) -> None:
    """Roll the stack; raises `NoStack`, `UsageError`, and `StackError` where the roll stopped."""
    stack = find_stack_with_door(options.out)
    if stack.on_ray:
        raise UsageError(
            "On Ray a render is brought about by `serve deploy`, one replica after the other: "
            f"{stack.layout.serve_yaml} says how"
        )
    with _alone(stack), ending_once():
        Roll(stack, options).run()


class Roll:
    """One roll, or the rest of one."""

    def __init__(self, stack: Stack, options: RollOptions) -> None:
        self._stack = stack
        self._options = options
        self._state = stack.layout.state
        self._supervisord = _supervisord(stack)
        self._record, self._due = self._begin()

    def run(self) -> None:
        """Restart what is due, in order; the first failure is the end."""
        for name in self._due:
            try:
                self._roll_proxy() if name == PROXY else self._roll_worker(name)
            except (StackError, OSError, psutil.Error) as error:
                raise StackError(self._verdict(name, str(error))) from None
            except xmlrpc.client.Fault as fault:
                raise StackError(self._verdict(name, f"supervisord says {fault.faultString}")) from None
            except KeyboardInterrupt:
                click.echo(f"Broken off; `vllm-stack roll` goes on with {name}", err=True)
                raise
            self._note(self._record.with_done(name))
        if self._record.left:
            click.echo(
                f"Rolled: {', '.join(self._due)}. `vllm-stack roll` goes on with {self._record.left[0]}"
            )
            return
        self._state_path.unlink(missing_ok=True)
        click.echo(f"Rolled: {', '.join(self._record.targets) or 'there was nothing to do'}")

    def _begin(self) -> tuple[RollRecord, list[str]]:
        """Give the roll, and which of its names are due now: all that are left, or of those asked for.

        What was asked for by name is restarted, also if all of it is done.
        """
        before = read_roll(self._state_path)
        names = self._names(before)
        if PROXY in names or any(self._changed(name) for name in names):
            _check_changes(self._stack)
        targets = {name: fingerprint_of(self._files(name)) for name in names}
        record = begin_or_go_on(None if self._options.anew else before, user_name(), targets)
        if record is before and record.done:
            began = time.strftime("%H:%M", time.localtime(record.began))
            click.echo(f"Going on with the roll of {began}; done: {', '.join(record.done)}")
        self._note(record)
        left = [name for name in record.left if name in targets or not self._options.names]
        return record, left or list(targets)

    def _names(self, before: RollRecord | None) -> tuple[str, ...]:
        """Name what is to be restarted: as asked, or every worker, and the proxy if its options changed.

        So it does if the roll `before` had it adopt them, and could not bring it to go by them.
        """
        if self._options.names:
            return tuple(
                dict.fromkeys(
                    word if word == PROXY else _worker_named(self._stack, word)
                    for word in self._options.names
                )
            )
        due = self._changed(PROXY) or (before is not None and PROXY in before.left)
        return self._stack.worker_names + ((PROXY,) if due else ())

    def _roll_worker(self, name: str) -> None:
        path = drain_order(self._state, name)
        by_hand = _is_by_hand(path)
        if not by_hand and not self._options.allow_gap:
            check_gap(self._stack, name)
        try:
            if not by_hand:
                with writing_orders(self._stack):
                    give_order(path, user_name(), Reason.ROLL)
            wait_drained(self._stack, name, self._options.drain_timeout)
            self._restart(name)
        except Unfit as unfit:
            if not _is_by_hand(path):
                with writing_orders(self._stack):
                    give_order(path, user_name(), Reason.UNFIT, str(unfit))
            raise
        except BaseException:
            self._take_back(name)
            raise
        if not self._take_back(name):
            click.echo(f"{name} is ready, and stays drained: that was ordered by hand")
        elif not wait_open(self._stack, name, _READMISSION):
            raise StackError(f"{name} is ready, but the proxy does not send to it")

    def _take_back(self, name: str) -> bool:
        """Take the order of the roll back; False for one by hand, before or meanwhile: it stays."""
        if _is_by_hand(drain_order(self._state, name)):
            return False
        withdraw_order(self._stack, name)
        return True

    def _restart(self, name: str) -> None:
        """Restart it with its new options, and see that it is fit to serve."""
        self._check_target(name)
        click.echo(f"        {name}  stopping")
        restart(
            self._stack,
            name,
            lambda: adopt(self._files(name), self._state, name, self._supervisord),
            self._options.timeout,
        )
        key = self._stack.layout.internal_key.read_text("utf-8").strip()
        model = self._stack.model_of(name)
        trouble = warm_up(self._stack.workers[name], key, model, self._options.timeout)
        if trouble is not None:
            raise Unfit(f"{name} is ready, but {trouble}; it gets no requests (`vllm-stack readmit {name}`)")

    def _check_target(self, name: str) -> None:
        """Raise `StackError` if it would get other options than the roll began with: nobody checked them."""
        if self._fingerprint(name) != self._record.targets[name]:
            raise StackError("something else was rendered since the roll began, and another roll brings it")

    def _roll_proxy(self) -> None:
        """Have the proxy reload: its old processes go on with the connections that they have."""
        before = ask_reloads(self._stack)
        if before is None:
            raise StackError("the proxy does not answer")
        self._check_target(PROXY)
        adopt(self._files(PROXY), self._state, PROXY, self._supervisord)
        self._stack.supervisor.call("signalProcess", PROXY, "HUP")
        click.echo("        proxy  reloading")
        end = time.monotonic() + _RELOAD
        while time.monotonic() < end:
            now = ask_reloads(self._stack)  # of the old processes one may still answer
            if now is not None and now[0] > before[0]:
                if now[1] is not None:
                    raise StackError(now[1])
                return
            time.sleep(LOOK_EVERY)
        raise StackError(f"the proxy did not reload within {_RELOAD:.0f} s")

    def _files(self, name: str) -> list[Path]:
        layout = self._stack.layout
        if name == PROXY:
            return [layout.proxy_json, layout.gunicorn_conf, layout.stack_json]
        return [layout.worker_json(name)]

    def _changed(self, name: str) -> bool:
        kept = kept_options(self._state, name)
        return kept is not None and self._fingerprint(name) != fingerprint_of(
            kept / file.name for file in self._files(name)
        )

    def _fingerprint(self, name: str) -> str | None:
        """Give the short name of its rendered options; None for one that was rendered away."""
        try:
            return fingerprint_of(self._files(name))
        except FileNotFoundError:
            return None

    @property
    def _state_path(self) -> Path:
        return self._stack.layout.roll_record

    def _note(self, record: RollRecord) -> None:
        with writing_orders(self._stack):
            write_roll(self._state_path, record)
        self._record = record

    def _verdict(self, name: str, why: str) -> str:
        """Say what stopped the roll, and what is as it was before."""
        after = [other for other in self._record.left if other != name]
        rest = f" Not touched: {', '.join(after)}." if after else ""
        stopped = f"The roll stopped at {name}: {why.rstrip('.')}"
        return f"{stopped}.{rest} `vllm-stack roll` goes on when that is mended"


def _check_changes(stack: Stack) -> None:
    """Raise `StackError` if what was rendered since differs in what a roll cannot change."""
    kept = kept_options(stack.layout.state, PROXY)
    if kept is None:
        return
    running = Rendered(_read(kept / "stack.json"), _read(kept / "proxy.json"))
    rendered = Rendered(_read(stack.layout.stack_json), _read(stack.layout.proxy_json))
    found = list(obstacles(running, rendered))
    if found:
        raise StackError(
            f"What was rendered cannot be rolled out: it changes {'; '.join(found)}. "
            "Render it as it was in this, or: vllm-stack down, then up"
        )


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StackError(f"{path} cannot be read: {error}") from None


def _is_by_hand(path: Path) -> bool:
    order = read_order(path)
    return order is not None and order.reason is Reason.BY_HAND


def _worker_named(stack: Stack, word: str) -> str:
    name = server_named(stack, word)
    if name in stack.upstream_names:
        raise UsageError(f"{name} is a server elsewhere: it is restarted there")
    return name


def _supervisord(stack: Stack) -> int:
    """Give supervisord's process id; raises `NoStack` where nothing runs, or not for long."""
    pid = stack.supervisor.pid()
    if pid is None:
        raise NoStack(f"supervisord is not running: vllm-stack up --out {stack.layout.out}")
    if not pid or not psutil.pid_exists(pid):
        raise StackError("supervisord is stopping, or does not answer")
    return pid


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    """Hold off a second roll; the lock ends with this process, however it ends."""
    path = stack.layout.roll_record.with_suffix(".lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StackError(f"{path} cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StackError(f"Another roll of {stack.layout.out} is under way") from None
    else:
        yield
    finally:
        os.close(descriptor)
