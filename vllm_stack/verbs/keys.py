"""The verb that makes and ends keys of clients, as the command line spells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vllm_stack.verbs.options import out_option

_json_option = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_expires_option = click.option(
    "--expires",
    metavar="DATE|30d",
    help="When it ends: so long from now (s, m, h, d, w), at the end of a date in UTC, or at a time.",
)


@click.group()
def keys() -> None:
    """Give every client a key of its own, with a name, limits and an end.

    A running proxy takes up a change within seconds, and no connection ends for it. The keys that were given
    to `render` hold as well.

    \b
      vllm-stack keys add alice --requests-per-minute 60 --expires 30d
      vllm-stack keys list
    """


@keys.command()
@click.argument("name")
@out_option
@click.option("--requests-per-minute", type=click.IntRange(1, 1_000_000), metavar="N", help="At most.")
@click.option(
    "--concurrent", type=click.IntRange(1, 1_000_000), metavar="N", help="Requests at a time, at most."
)
@_expires_option
@_json_option
def add(**settings: Any) -> None:
    """Make a key called NAME, and print it: it is shown this once.

    With the first one a door that took any key begins to ask for one.
    """
    from vllm_stack.commands.keys import add_key

    add_key(**settings)


@keys.command("list")
@out_option
@_json_option
def list_(out: Path, as_json: bool) -> None:
    """Show the keys by name, with what each has used since the proxy started; never a key."""
    from vllm_stack.commands.keys import list_keys

    list_keys(out, as_json)


@keys.command()
@click.argument("name")
@out_option
@_json_option
def revoke(out: Path, name: str, as_json: bool) -> None:
    """End the key called NAME for every new request; answers that are under way finish.

    When the last one is revoked the door refuses everyone: it does not open.
    """
    from vllm_stack.commands.keys import revoke_key

    revoke_key(out, name, as_json)


@keys.command()
@click.argument("name")
@out_option
@click.option(
    "--grace", default="24h", show_default=True, metavar="24h", help="How long the old one holds, too."
)
@_expires_option
@_json_option
def rotate(**settings: Any) -> None:
    """Make another key called NAME, and print it; limits, counts and the end stay.

    The one of before holds for a while yet, so that the client can change over.
    """
    from vllm_stack.commands.keys import rotate_key

    rotate_key(**settings)


COMMANDS = (keys,)
