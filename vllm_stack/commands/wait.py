"""`vllm-stack wait`: show how the workers come up, and end when they are ready, or one failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import click

from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.commands.watch_workers import (
    LOOK_EVERY,
    SPEAK_EVERY,
    ask_proxy,
    failure_of,
    is_up,
    log_tail,
    look_at,
    ready_names,
)
from vllm_stack.errors import NoStack, StackError
from vllm_stack.worker.failure import Failure

# A supervisord started just before us needs a moment until it answers.
_GRACE = 10.0


def wait_until_ready(
    out: Path,
    timeout: float,
    any_worker: bool,
    clock: Callable[[], float] = time.monotonic,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Return when all workers are ready (or one, with `any_worker`).

    Servers elsewhere are not ours to wait for: one of them is enough, and only where there are no
    workers, or with `any_worker`. `check` is called before every look; what it raises ends the wait.

    Raises `NoStack` when supervisord does not run, `StackError` when a worker failed or the time
    (seconds) is over; the last lines of its log are shown before.
    """
    begun = clock()
    before: dict[str, Failure | None] = {}
    said: dict[str, str] = {}
    spoken = 0.0
    while True:
        check()
        # Each time anew: until its proxy starts, what an earlier stack here left counts as running.
        stack = find_stack(out)
        states = ask_proxy(stack)
        elapsed = clock() - begun
        if not states and elapsed > _GRACE and stack.supervisor.pid() is None:
            raise NoStack(f"supervisord is not running: supervisord -c {stack.layout.supervisord_conf}")
        if is_up(states, stack, any_worker):
            click.echo(f"Ready after {elapsed:.0f} s: {', '.join(ready_names(states, stack))}")
            return
        for name in stack.worker_names:
            failure = failure_of(stack, name)
            known = before.setdefault(name, failure)
            if failure is not None and failure != known:
                for line in log_tail(stack, name):
                    click.echo(line, err=True)
                raise StackError(
                    f"{name} failed: {failure.story}. "
                    f"Its log is {stack.layout.log(name)}; it will be started again"
                )
        if elapsed > timeout:
            raise StackError(f"Not ready after {timeout:.0f} s: {_describe(states, stack)}")
        if states != said or elapsed - spoken >= SPEAK_EVERY:
            said, spoken = states, elapsed
            for name in stack.server_names:
                click.echo(look_at(states, stack, name).line(elapsed))
        time.sleep(LOOK_EVERY)


def _describe(states: dict[str, str], stack: Stack) -> str:
    return ", ".join(f"{name} is {states.get(name, 'not seen yet')}" for name in stack.server_names)
