"""The verbs that change a running stack in nobody's way, as the command line spells them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_stack.verbs.completion import WorkerName
from vllm_stack.verbs.options import Seconds, out_option

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _drain_options(function: _Function) -> _Function:
    function = click.option(
        "--drain-timeout",
        type=Seconds(min=0),
        default=600.0,
        show_default=True,
        metavar="SECONDS",
        help="How long open answers may take to finish.",
    )(function)
    return click.option(
        "--allow-gap", is_flag=True, help="Also where nobody else serves the model: requests may fail."
    )(function)


@click.command()
@click.argument("names", nargs=-1, type=WorkerName(), metavar="[WORKER|proxy]...")
@out_option
@_drain_options
@click.option(
    "--timeout",
    type=Seconds(min=1),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker may take to be ready.",
)
@click.option("--anew", is_flag=True, help="Begin anew, also where an earlier roll was broken off.")
def roll(
    names: tuple[str, ...], allow_gap: bool, drain_timeout: float, timeout: float, **settings: Any
) -> None:
    """Restart all workers, or those named, one at a time, without a failed request.

    Nothing new goes to the worker, what it works on ends, it restarts, gets one request to warm it up, and
    is back in the choice; then the next one. What was rendered since the start takes hold, so this rolls out
    another --revision, or other options of vLLM and of the proxy, which reloads and breaks no connection.
    The first failure is the end: what is left goes on as it was, and `roll` again takes it up there.

    \b
      vllm-stack render Qwen/Qwen3-8B --workers 2 --revision v2
      vllm-stack roll
    """
    from vllm_stack.commands.roll import RollOptions, roll_stack

    roll_stack(
        RollOptions(
            names=names, allow_gap=allow_gap, drain_timeout=drain_timeout, timeout=timeout, **settings
        )
    )


@click.command()
@click.argument("names", nargs=-1, required=True, type=WorkerName(), metavar="WORKER...")
@out_option
@_drain_options
def drain(names: tuple[str, ...], out: Path, allow_gap: bool, drain_timeout: float) -> None:
    """Send a worker (or an upstream) nothing new, and wait until what it works on has ended.

    It runs on, and stays out of the choice, over restarts too, until `readmit` takes it back.
    """
    from vllm_stack.commands.drain import drain as drain_servers

    drain_servers(out, names, drain_timeout, allow_gap)


@click.command()
@click.argument("names", nargs=-1, required=True, type=WorkerName(), metavar="WORKER...")
@out_option
def readmit(names: tuple[str, ...], out: Path) -> None:
    """Take a worker back into the choice that was drained."""
    from vllm_stack.commands.drain import readmit as readmit_servers

    readmit_servers(out, names)


COMMANDS = (roll, drain, readmit)
