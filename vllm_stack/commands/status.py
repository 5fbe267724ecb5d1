"""`vllm-stack status`: every worker as it truly is, and what it does."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
from rich.console import Console

from vllm_stack.commands.observer import Observer, look_of, places_of
from vllm_stack.commands.stack import Stack, find_stack, find_stack_with_door
from vllm_stack.commands.watch_workers import ask_proxy, is_up, look_at
from vllm_stack.errors import NoStack
from vllm_stack.status.as_json import as_json
from vllm_stack.status.looks import compare
from vllm_stack.status.picture import Pace, Picture, compose
from vllm_stack.status.screen import screen
from vllm_stack.status.verdict import ALL_READY, DEGRADED, exit_code

# Where nobody looks at it, a table is as wide as it needs to be.
_WIDTH = 1000


def show_status(out: Path, in_json: bool, interval: float) -> int:
    """Print how the stack in `out` is and give the exit code; raises `NoStack`.

    What happens in a second is told from two looks, `interval` seconds apart; with 0 it is left out.
    """
    stack = find_stack(out)
    if stack.joins is not None:
        return _show_member(stack, in_json)
    picture = take_picture(out, interval)
    if in_json:
        click.echo(json.dumps(as_json(picture), indent=2))
    else:
        _print(picture)
    return exit_code(picture)


def _show_member(stack: Stack, in_json: bool) -> int:
    """Print how a box is that has joined a Ray cluster; 0: it has, 1: it is about to, 3: it does not run."""
    if not stack.supervisord_runs():
        raise NoStack(f"supervisord is not running, so nothing is: vllm-stack up --out {stack.layout.out}")
    states = ask_proxy(stack)
    sights = [look_at(states, stack, name) for name in stack.worker_names]
    if in_json:
        shown = [{"name": sight.name, "state": sight.state, "detail": sight.doing} for sight in sights]
        click.echo(json.dumps({"joins": stack.joins, "programs": shown}, indent=2))
    else:
        for sight in sights:
            what = f"has joined {stack.joins}" if sight.state == "ready" else f"{sight.state}  {sight.doing}"
            click.echo(f"{sight.name}  {what}".rstrip())
    return ALL_READY if is_up(states, stack) else DEGRADED


def _print(picture: Picture) -> None:
    """Print it for a person: as wide as the terminal, or line for line where there is none."""
    console = Console(highlight=False, markup=False, emoji=False)
    if console.is_terminal:
        console.print(screen(picture, console.width))
        return
    console.width = _WIDTH
    with console.capture() as captured:
        console.print(screen(picture, _WIDTH))
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def take_picture(out: Path, interval: float) -> Picture:
    """Look at the stack in `out`; raises `NoStack`."""
    stack = find_stack_with_door(out)
    with Observer(stack) as observer:
        begun = time.monotonic()
        seen = observer.see()
        pace = Pace()
        if interval:
            time.sleep(max(0.0, interval - (time.monotonic() - begun)))
            pace = compare(look_of(seen), observer.look_again(seen))
    return compose(stack.door.url, places_of(stack), seen, pace)
