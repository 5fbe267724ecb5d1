"""`vllm-stack haproxy`, as the command line spells it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("doors", nargs=-1, required=True, metavar="DOOR...")
@click.option(
    "--bind",
    default="*:8080",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where clients come to.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Speak HTTPS to clients: a certificate with its chain, and its private key, in one file.",
)
@click.option(
    "--balance",
    is_flag=True,
    help="Spread requests over all doors.  [default: the first one that is well gets all of them]",
)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write it there instead of printing it."
)
def haproxy(
    doors: tuple[str, ...], bind: str, tls_cert: Path | None, balance: bool, output: Path | None
) -> None:
    """Print a haproxy.cfg that puts the doors of several boxes behind one address (docs/boxes.md).

    DOOR is http://host:port of a stack; when the first one fails, the next one takes over.

    \b
      vllm-stack haproxy http://10.0.0.1:8000 http://10.0.0.2:8000 --output haproxy.cfg
      haproxy -f haproxy.cfg
    """
    from vllm_stack.commands.haproxy import configuration, parse_doors, write_configuration

    text = configuration(parse_doors(doors), bind, tls_cert, balance)
    if output is None:
        click.echo(text, nl=False)
        return
    write_configuration(text, output)
    click.echo(f"Wrote {output}. Next: haproxy -c -f {output}")


COMMANDS = (haproxy,)
