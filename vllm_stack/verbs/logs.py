"""The verb that shows what the programs of a stack say, as the command line spells it."""

from __future__ import annotations

import time
from typing import Any

import click

from vllm_stack.verbs.options import out_option

# They are held in memory; --since has no limit.
_MOST_LINES = 100_000


class _Since(click.ParamType[float]):
    """So long ago, or a time; gives Unix time."""

    name = "since"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        from vllm_stack.logs.since import parse_since

        try:
            return parse_since(str(value), time.time())
        except ValueError as error:
            self.fail(str(error), parameter, context)


@click.command()
@click.argument("programs", nargs=-1, metavar="[PROGRAM]...")
@out_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is said from now on, until Ctrl-C.")
@click.option(
    "--since",
    type=_Since(),
    metavar="AGO|TIME",
    help="From then on: 30s, 10m, 2h, 1d, or a local time such as 2026-11-26T10:00.",
)
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0, _MOST_LINES),
    metavar="N",
    help="The last N lines of all.  [default: 50; with --since all of them]",
)
@click.option("--json", "as_json", is_flag=True, help="Print every line as a JSON object.")
def logs(**settings: Any) -> None:
    """Show what all programs of a stack say, merged by time; with names, what these say.

    PROGRAM is proxy, worker-0, worker-1, ..., supervisord, or requests, which is shown only by name. Rotated
    logs count. Following goes on through rotations and restarts of the stack.
    """
    from vllm_stack.commands.logs import LogOptions, show_logs

    show_logs(LogOptions(**settings))


COMMANDS = (logs,)
