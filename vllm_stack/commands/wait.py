"""`vllm-stack wait`: show how the workers come up, and end when they are ready, or one failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import requests

from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.errors import NoStack, StackError
from vllm_stack.layout import failure_record
from vllm_stack.log_tail import last_lines
from vllm_stack.worker.failure import Failure, last_failure

_TICK = 1.0
_SPEAK_EVERY = 10.0
# A supervisord started just before us needs a moment until it answers.
_GRACE = 10.0


def wait_until_ready(
    out: Path, timeout: float, any_worker: bool, clock: Callable[[], float] = time.monotonic
) -> None:
    """Return when all workers are ready (or one, with `any_worker`).

    Servers elsewhere are not ours to wait for: one of them is enough, and only where there are no
    workers, or with `any_worker`.

    Raises `NoStack` when supervisord does not run, `StackError` when a worker failed or the time
    (seconds) is over; the last lines of its log are shown before.
    """
    begun = clock()
    before: dict[str, Failure | None] = {}
    said: dict[str, str] = {}
    spoken = 0.0
    while True:
        # Each time anew: until its proxy starts, what an earlier stack here left counts as running.
        stack = find_stack(out)
        states = _states(stack)
        elapsed = clock() - begun
        if not states and elapsed > _GRACE and stack.supervisor.pid() is None:
            raise NoStack(f"supervisord is not running: supervisord -c {stack.layout.supervisord_conf}")
        if _enough(states, stack, any_worker):
            click.echo(f"Ready after {elapsed:.0f} s: {', '.join(_ready(states, stack))}")
            return
        for name in stack.worker_names:
            failure = _failure(stack, name)
            known = before.setdefault(name, failure)
            if failure is not None and failure != known:
                _show_log(stack, name)
                raise StackError(
                    f"{name} failed: vLLM {failure.how} after {failure.seconds_alive:.0f} s. "
                    f"Its log is {stack.layout.logs / name}.log; it will be started again"
                )
        if elapsed > timeout:
            raise StackError(f"Not ready after {timeout:.0f} s: {_describe(states, stack)}")
        if _changed(states, said) or elapsed - spoken >= _SPEAK_EVERY:
            spoken = elapsed
            _speak(stack, states, elapsed)
        time.sleep(_TICK)


def _states(stack: Stack) -> dict[str, str]:
    """Ask the proxy how each worker is; before it listens, all are merely starting."""
    try:
        answer = requests.get(f"http://127.0.0.1:{stack.admin_port}/workers", timeout=5)
        workers: list[dict[str, Any]] = answer.json()["workers"]
        return {worker["name"]: worker["state"] for worker in workers}
    except (requests.RequestException, ValueError, KeyError):
        return {}


def _enough(states: dict[str, str], stack: Stack, any_worker: bool) -> bool:
    ready = _ready(states, stack)
    if any_worker or not stack.worker_names:
        return bool(ready)
    return set(stack.worker_names) <= set(ready)


def _ready(states: dict[str, str], stack: Stack) -> list[str]:
    return [name for name in _names(stack) if states.get(name) == "ready"]


def _names(stack: Stack) -> tuple[str, ...]:
    return stack.worker_names + stack.upstream_names


def _changed(states: dict[str, str], said: dict[str, str]) -> bool:
    changed = states != said
    said.clear()
    said.update(states)
    return changed


def _speak(stack: Stack, states: dict[str, str], elapsed: float) -> None:
    for name in _names(stack):
        ready = states.get(name) == "ready"
        doing = "" if ready else " ".join(last_lines(stack.layout.logs / f"{name}.log", 1))
        waiting = states.get(name, "unknown") if name in stack.upstream_names else "loading"
        click.echo(f"{elapsed:4.0f} s  {name}  {'ready' if ready else waiting}  {doing[:100]}".rstrip())


def _describe(states: dict[str, str], stack: Stack) -> str:
    return ", ".join(f"{name} is {states.get(name, 'not seen yet')}" for name in _names(stack))


def _failure(stack: Stack, name: str) -> Failure | None:
    return last_failure(failure_record(stack.layout.state, name))


def _show_log(stack: Stack, name: str) -> None:
    for line in last_lines(stack.layout.logs / f"{name}.log", 15):
        click.echo(f"  {name} | {line}", err=True)
