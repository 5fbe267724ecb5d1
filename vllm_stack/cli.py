"""The command line: it parses, dispatches, and is the one border where errors become exit codes.

Nothing here imports gevent, vllm or torch: `--help` and `render` answer at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from vllm_stack import __version__
from vllm_stack.errors import StackError, UsageError
from vllm_stack.options import MIB, Options

_Function = TypeVar("_Function", bound=Callable[..., Any])
_ENVIRONMENT = "VLLM_STACK_"


def main() -> None:
    """Run the command line and exit: 0 ok, 1 expected failure, 2 usage, 3 a bug of ours, 130 Ctrl-C."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and give its exit code."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see __main__
        result = _group.main(argv, prog_name="vllm-stack", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except StackError as error:
        click.echo(f"vllm-stack: {_one_line(str(error))}", err=True)
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left (`vllm-stack ... | head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception:  # the one catch-all: what gets here is our bug
        _report_bug(argv)
        return 3


def _one_line(message: str) -> str:
    return message.replace("\n", "\\n").replace("\r", "\\r")


def _report_bug(argv: list[str]) -> None:
    import platform
    import traceback

    verb = argv[0] if argv else ""
    click.echo(
        "vllm-stack: this is a bug of ours. Please report it with what follows:\n\n"
        f"vllm-stack {__version__}, Python {platform.python_version()}, {platform.platform()}, {verb!r}\n"
        f"{traceback.format_exc()}",
        err=True,
    )


def _option(*names: str, **settings: Any) -> Callable[[_Function], _Function]:
    """Declare an option that can also be set as VLLM_STACK_<NAME>."""
    variable = _ENVIRONMENT + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _header_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Take a header's name (RFC 9110 token). One with an underscore never reaches the proxy's rules."""
    if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^`|~-]+", value):
        raise click.BadParameter(f"{value!r} is no name of a header; letters, digits and dashes make one")
    return value.lower()


def _stagger(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if value not in ("auto", "none") and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value):
        raise click.BadParameter(f"{value!r} is neither auto nor none nor a number of seconds")
    return value


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 1 something expected went wrong, 2 usage, 3 a bug of ours, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="vllm-stack")
def _group() -> None:
    """N vLLM workers behind one OpenAI-compatible door, held up by supervisord.

    \b
      vllm-stack render MODEL --workers 2
      supervisord -c out/supervisord.conf
    """


_out_option = _option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="The stack's directory.",
)


@_group.command(context_settings={"ignore_unknown_options": False})
@click.argument("model")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_OPTIONS...]")
@_option(
    "--workers",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="vLLM servers to run; 0 runs none and sends everything to --upstream.",
)
@_option(
    "--tensor-parallel-size",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="GPUs of each worker.",
)
@_option("--revision", help="Branch, tag or commit of the model on the hub.")
@_option(
    "--base-port", type=click.IntRange(1, 65535), default=5001, show_default=True, help="Port of worker-0."
)
@_option(
    "--worker-transport",
    type=click.Choice(["tcp", "unix"]),
    default="tcp",
    show_default=True,
    help="How the proxy reaches the workers. With unix each listens on a socket instead of a port, "
    "in a directory that only you may enter: no other user of the machine can reach it.",
)
@_option(
    "--port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the public door."
)
@_option("--host", help="Address of the public door.  [default: 0.0.0.0 with a key, 127.0.0.1 without]")
@_option(
    "--admin-port",
    type=click.IntRange(1, 65535),
    default=9000,
    show_default=True,
    help="Admin door, loopback only.",
)
@_option(
    "--tls-cert",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Certificate of the public door with its chain (PEM): with --tls-key the door speaks HTTPS.",
)
@_option(
    "--tls-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its private key, without a passphrase and readable by its owner alone. Both files stay where they "
    "are: after a renewal, `supervisorctl signal HUP proxy` takes the new ones, and open answers end first.",
)
@_option(
    "--api-key",
    "api_keys",
    multiple=True,
    help="A key clients must send; may be repeated. Shows in `ps`: prefer --api-key-file.",
)
@_option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help="File with one client key per line, readable by its owner alone.",
)
@_option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="URL",
    help="A server elsewhere that joins the choice: http://host:port of another vllm-stack, or of any "
    "OpenAI-compatible server with the same model and a /health; may be repeated.",
)
@_option(
    "--upstream-key-file",
    type=click.Path(path_type=Path),
    help="The keys upstreams ask for, readable by its owner alone. A line is a key for all of them, or "
    "`URL KEY` for one. It stays where it is: the proxy reads it at every start.",
)
@_option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
    help="cpu runs vLLM's CPU build.",
)
@_option("--gpus", help="GPUs to use, e.g. 0,1,4,5.  [default: all of CUDA_VISIBLE_DEVICES, else all]")
@_option(
    "--policy",
    type=click.Choice(["prefix", "session", "least-loaded", "round-robin", "random"]),
    default="prefix",
    show_default=True,
    help="How the proxy chooses a worker. prefix: the turns of a conversation go where their prefix "
    "is cached, unless that worker is far busier than the others; a new conversation goes to one that "
    "is not. session: requests with the same --session-header stay together, however busy their "
    "worker. least-loaded: the fewest requests in flight. Requests without a prefix or a session go to "
    "the least loaded worker.",
)
@_option(
    "--session-header",
    default="x-session-id",
    show_default=True,
    metavar="NAME",
    callback=_header_name,
    help="The header that names a session, for --policy session.",
)
@_option(
    "--proxy-processes",
    type=click.IntRange(1, 64),
    metavar="N",
    help="Processes of the proxy.  [default: one for two workers, on an eighth of the CPU cores at most]",
)
@_option(
    "--open-route",
    "open_routes",
    multiple=True,
    metavar="PATH",
    help="Open one of vLLM's control routes, e.g. /metrics; may be repeated.",
)
@_option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin use the door from a browser, e.g. https://app.example.com, or * for "
    "all pages; may be repeated. The page must still know a key.",
)
@_option(
    "--max-body",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="MIB",
    help="Largest request.",
)
@_option(
    "--max-inflight-per-worker",
    type=click.IntRange(min=1),
    metavar="N",
    help="Send a worker no more requests at a time; further ones wait in line.  [default: no limit, vLLM "
    "has a line of its own]",
)
@_option(
    "--queue-timeout",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a request waits for a worker that is starting, or at its limit, before it is refused with "
    "503 or 429.",
)
@_option(
    "--response-timeout",
    type=click.FloatRange(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="Longest silence of a worker in the middle of a request.",
)
@_option(
    "--restart-delay",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause before a failed worker starts again.",
)
@_option(
    "--restart-delay-max",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Let the pause double with every failure in a row, up to this.  [default: it never grows]",
)
@_option(
    "--start-timeout",
    type=click.FloatRange(min=0),
    default=1800.0,
    show_default=True,
    metavar="SECONDS",
    help="A worker that is not ready so long after its start is killed and started again; 0 waits for ever.",
)
@_option(
    "--start-stagger",
    default="auto",
    show_default=True,
    metavar="auto|none|SECONDS",
    callback=_stagger,
    help="auto: the first worker starts alone, downloads the model and fills vLLM's caches; the others "
    "follow when it is ready. Once that was so, all start together. SECONDS: so much between any two starts.",
)
@_option(
    "--wedge-timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="A worker with requests in flight whose engine makes no step for so long is killed and started "
    "again; five times as long while it computes (long prefills, compilation). 0 switches this off.",
)
@_option(
    "--drain-timeout",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a stop lets open requests finish.",
)
@_option("--vllm-command", default="vllm", show_default=True, help="The vLLM to run.")
@_out_option
@click.option("--dry-run", is_flag=True, help="Print the files instead of writing them.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def render(
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    upstreams: tuple[str, ...],
    upstream_key_file: Path | None,
    gpus: str | None,
    cors_origins: tuple[str, ...],
    max_body: int,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Check the machine and write a stack for MODEL (a directory or a hub name).

    Everything after `--` goes to `vllm serve` as it is:

    \b
      vllm-stack render Qwen/Qwen3-8B --workers 2 -- --max-model-len 8192 --dtype bfloat16
    """
    from vllm_stack.commands.render import plan_json, render_stack, summary
    from vllm_stack.gpus import parse_gpu_list
    from vllm_stack.keys import check_keys, read_key_file
    from vllm_stack.origins import parse_origins
    from vllm_stack.upstreams import parse_upstreams, read_upstream_keys

    if gpus is not None and settings["device"] == "cpu":
        raise UsageError(f"--gpus {gpus} and --device cpu exclude each other: leave one out")
    addresses = parse_upstreams(upstreams)
    if upstream_key_file is not None:
        upstream_key_file = upstream_key_file.expanduser().absolute()
        read_upstream_keys(upstream_key_file, addresses)
    if tls_cert is not None or tls_key is not None:
        from vllm_stack.tls_files import check_tls_files

        tls_cert, tls_key = check_tls_files(tls_cert, tls_key)
    options = Options(
        tls_cert=tls_cert,
        tls_key=tls_key,
        upstreams=addresses,
        cors_origins=parse_origins(cors_origins),
        upstream_key_file=upstream_key_file,
        api_keys=check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ()))),
        gpus=None if gpus is None else parse_gpu_list(gpus),
        max_body=max_body * MIB,
        **settings,
    )
    plan, files = render_stack(options, dry_run)
    if as_json:
        click.echo(plan_json(plan, files))
        return
    for line in summary(plan, written=not dry_run):
        click.echo(line)
    if dry_run:
        for file in files:
            click.echo(f"\n===== {file.path}\n{file.text}", nl=False)


def _timeout_option(help_text: str) -> Callable[[_Function], _Function]:
    return _option(
        "--timeout",
        type=click.FloatRange(min=0),
        default=1800.0,
        show_default=True,
        metavar="SECONDS",
        help=help_text,
    )


@_group.command()
@_out_option
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


@_group.command()
@_out_option
@_timeout_option("How long to wait.")
@click.option("--any", "any_worker", is_flag=True, help="Be content with one ready worker.")
def wait(out: Path, timeout: float, any_worker: bool) -> None:
    """Show how the workers come up, until all are ready.

    Ends with exit code 1, the last lines of its log and the reason when a worker fails.
    """
    from vllm_stack.commands.wait import wait_until_ready

    wait_until_ready(out, timeout, any_worker)


@_group.command()
@_out_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(out: Path, as_json: bool) -> int:
    """Show every worker as it truly is: what it is doing, since when, and why it last failed.

    A worker is called ready only if it has just said so itself. Exit code 0: all are ready; 1: some
    are not; 3: none is.
    """
    from vllm_stack.commands.status import show_status

    return show_status(out, as_json)


@_group.command()
@_out_option
def down(out: Path) -> None:
    """Stop the stack and see to it that no process of it is left."""
    from vllm_stack.commands.down import stop_stack

    stop_stack(out)


@_group.command()
@_out_option
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["api-server", "engine", "proxy", "hang", "restart"]),
    help="Hold this drill only; may be repeated.",
)
@click.option("--worker", metavar="NAME", help="The worker that is hurt.  [default: the first that is ready]")
@click.option(
    "--clients", type=click.IntRange(1, 256), default=4, show_default=True, help="Half of them stream."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Of each answer."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a worker may take to be ready again, in each drill.",
)
@_option(
    "--api-key", "api_keys", multiple=True, help="A key the door takes. Shows in `ps`: prefer --api-key-file."
)
@_option(
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
    from vllm_stack.keys import check_keys, read_key_file

    keys = check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ())))
    drill_stack(DrillOptions(keys=keys, **settings))


@_group.command()
@_out_option
@click.option("--json", "as_json", is_flag=True, help="Say what was removed as JSON.")
def clean(out: Path, as_json: bool) -> None:
    """Remove what a stack left behind that was killed all at once: processes, sockets, records.

    Logs, rendered files, secrets and the records of failures stay.
    """
    from vllm_stack.commands.clean import clean_stack

    clean_stack(out, as_json)
