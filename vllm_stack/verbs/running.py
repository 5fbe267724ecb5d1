"""The verbs that run a stack, look at it and break it, as the command line spells them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_stack.verbs.completion import WorkerName
from vllm_stack.verbs.options import Seconds, option, out_option

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _timeout_option(help_text: str) -> Callable[[_Function], _Function]:
    return click.option(
        "--timeout",
        type=Seconds(min=0),
        default=1800.0,
        show_default=True,
        metavar="SECONDS",
        help=help_text,
    )


@click.command()
@out_option
@click.option("--detach", is_flag=True, help="Run it in the background; return when all workers are ready.")
@_timeout_option("With --detach: how long to wait.")
def up(out: Path, detach: bool, timeout: float) -> int:
    """Run the rendered stack and show how its workers are; Ctrl-C stops it.

    The first Ctrl-C lets open answers finish, a second one ends everything now, a third one kills what is
    left. No process stays behind. A worker that fails starts again. With --detach a failure while the
    workers load is exit code 1, and the stack runs on.
    """
    if not detach:
        # Before the slow imports: from here on a Ctrl-C waits until it can be heeded.
        from vllm_stack.program import block_signals

        block_signals()
    from vllm_stack.commands.up import run_detached, run_in_foreground

    if not detach:
        return run_in_foreground(out)
    run_detached(out, timeout)
    return 0


@click.command()
@out_option
@_timeout_option("How long to wait.")
@click.option("--any", "any_worker", is_flag=True, help="Be content with one ready worker.")
def wait(out: Path, timeout: float, any_worker: bool) -> None:
    """Show how the workers come up, until all are ready.

    Ends with exit code 1, the last lines of its log and the reason when a worker fails.
    """
    from vllm_stack.commands.wait import wait_until_ready

    wait_until_ready(out, timeout, any_worker)


@click.command()
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option(
    "--interval",
    type=Seconds(min=0),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Between the two looks from which rates are told; 0 leaves them out.",
)
def status(out: Path, as_json: bool, interval: float) -> int:
    """Show every worker as it truly is: what it is doing, since when, and why it last failed.

    A worker is called ready only if it has just said so itself. Exit code 0: all are ready; 1: some
    are not; 3: nothing serves.
    """
    from vllm_stack.commands.status import show_status

    return show_status(out, as_json, interval)


@click.command()
@out_option
@click.option(
    "--interval",
    type=Seconds(min=0.2),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks.",
)
def top(out: Path, interval: float) -> None:
    """Show the same live: what every worker does, and how many tokens come out of it. Ctrl-C ends it."""
    from vllm_stack.commands.top import show_top

    show_top(out, interval)


@click.command()
@out_option
def down(out: Path) -> None:
    """Stop the stack and see to it that no process of it is left."""
    from vllm_stack.commands.down import stop_stack

    stop_stack(out)


@click.command()
@out_option
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["api-server", "engine", "proxy", "hang", "restart"]),
    help="Hold this drill only; may be repeated.",
)
@click.option(
    "--worker",
    type=WorkerName(),
    metavar="NAME",
    help="The worker that is hurt.  [default: the first that is ready]",
)
@click.option(
    "--clients", type=click.IntRange(1, 256), default=4, show_default=True, help="Half of them stream."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of each answer."
)
@click.option(
    "--timeout",
    type=Seconds(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker may take to be ready again, in each drill.",
)
@option(
    "--api-key", "api_keys", multiple=True, help="A key the door takes. Shows in `ps`: prefer --api-key-file."
)
@option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with a key the door takes, readable by its owner alone.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--yes", is_flag=True, help="Do not ask whether it is meant.")
def drill(api_keys: tuple[str, ...], api_key_file: Path | None, **settings: Any) -> None:
    """Prove on a running stack that it gets over what will happen to it.

    Under traffic of its own it kills an API server, an engine and a process of the proxy, stops an
    engine and restarts a worker, and reports what clients saw, how long the stack took to be whole
    again, and what was left behind. Ends with exit code 1 unless every drill passed.
    """
    from vllm_stack.commands.drill import DrillOptions, drill_stack
    from vllm_stack.keys.api_key import check_keys, read_key_file

    keys = check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ())))
    drill_stack(DrillOptions(keys=keys, **settings))


@click.command()
@out_option
@click.option("--json", "as_json", is_flag=True, help="Say what was removed as JSON.")
def clean(out: Path, as_json: bool) -> None:
    """Remove what a stack left behind that was killed all at once: processes, sockets, records.

    Logs, rendered files, secrets and the records of failures stay.
    """
    from vllm_stack.commands.clean import clean_stack

    clean_stack(out, as_json)


COMMANDS = (up, wait, status, top, down, drill, clean)
