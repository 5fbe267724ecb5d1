"""`vllm-stack join`, as the command line spells it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import click

from vllm_stack.address import TcpAddress
from vllm_stack.verbs.options import Seconds, option, out_option

# No host has a space, a slash or a bracket in its name; an IPv6 address with a port stands in brackets.
_HEAD = re.compile(r"(?:\[(?P<ipv6>[^\s\[\]/]+)\]|(?P<host>[^\s\[\]/:]+))(?::(?P<port>[0-9]{1,5}))?")


class Head(click.ParamType[TcpAddress]):
    """HOST or HOST:PORT of a Ray cluster's head."""

    name = "head"
    port = 6379

    def convert(
        self, value: str | TcpAddress, parameter: click.Parameter | None, context: click.Context | None
    ) -> TcpAddress:
        if isinstance(value, TcpAddress):
            return value
        parts = _HEAD.fullmatch(f"[{value}]" if _is_ipv6(value) else value)
        port = int((parts and parts["port"]) or self.port)
        if parts is None or not 1 <= port <= 65535 or (parts["ipv6"] and not _is_ipv6(parts["ipv6"])):
            self.fail(f"{value!r} is no address: write HOST, HOST:PORT or [IPV6]:PORT", parameter, context)
        return TcpAddress(parts["ipv6"] or parts["host"], port)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


@click.command()
@click.argument("head", type=Head(), metavar="HEAD[:PORT]")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A copy of the head's out/secrets/ray-token; `-` is the standard input.  [default: the one of the "
    "last time]",
)
@out_option
@option(
    "--ray-host",
    metavar="ADDRESS",
    help="The address of this box by which the others reach it.  [default: the one it reaches the head from]",
)
@click.option(
    "--agent-port",
    type=click.IntRange(1, 65535),
    default=52365,
    show_default=True,
    help="Port at which Ray says whether this box is well.",
)
@option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="cpu gives CPU cores instead of GPUs.",
)
@option("--gpus", help="GPUs to give, e.g. 0,1,4,5.  [default: all of CUDA_VISIBLE_DEVICES, else all]")
@option(
    "--restart-delay",
    type=Seconds(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause before it joins again when it has failed.",
)
@option(
    "--drain-timeout",
    type=Seconds(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a stop lets replicas that run here end, or move.",
)
@option("--vllm-command", default="vllm", show_default=True, help="The vLLM, beside which Ray is.")
@click.option("--detach", is_flag=True, help="Run it in the background; return when the box has joined.")
@click.option(
    "--timeout",
    type=Seconds(min=0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="With --detach: how long to wait.",
)
@click.option(
    "--render-only",
    is_flag=True,
    help="Write the files, and start nothing: for supervisord, or systemd, to do so.",
)
@option("--systemd", is_flag=True, help="With --render-only: write a systemd unit, too.")
def join(
    head: TcpAddress,
    token_file: Path | None,
    agent_port: int,
    gpus: str | None,
    detach: bool,
    timeout: float,
    render_only: bool,
    **settings: object,
) -> int:
    """Give the GPUs of this box to the Ray cluster whose head is HEAD (see `render --target ray`).

    Checks the box and the cluster, writes a stack that has one program, and runs it in the foreground as `up`
    does: Ctrl-C takes the box out again.

    \b
      vllm-stack join 10.0.0.1 --token-file ray-token
      ssh head cat out/secrets/ray-token | vllm-stack join 10.0.0.1 --token-file -
    """
    from vllm_stack.commands.join import join_cluster
    from vllm_stack.commands.render import starting_steps
    from vllm_stack.commands.up import run_detached, run_in_foreground
    from vllm_stack.errors import UsageError
    from vllm_stack.gpus.mask import parse_gpu_list
    from vllm_stack.options import Options
    from vllm_stack.planning.member import Membership
    from vllm_stack.program import block_signals

    if settings["systemd"] and not render_only:
        raise UsageError("--systemd writes a unit, and systemd starts it: add --render-only")
    options = Options(
        model="",
        target="ray",
        gpus=None if gpus is None else parse_gpu_list(gpus),
        **settings,  # type: ignore[arg-type]
    )
    joined = join_cluster(options, Membership(head, agent_port), token_file)
    for note in joined.notes:
        click.echo(f"Note: {note}.")
    if render_only:
        click.echo("Next:")
        for step in starting_steps(joined.plan):
            click.echo(f"  {step}")
        return 0
    if detach:
        run_detached(options.out, timeout)
        return 0
    block_signals()
    return run_in_foreground(options.out)


COMMANDS = (join,)
