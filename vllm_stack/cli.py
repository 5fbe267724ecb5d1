"""The command line: it parses, dispatches, and is the one border where errors become exit codes.

Nothing here imports gevent, vllm or torch: `--help` and `render` answer at once.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

import click

from vllm_stack import __version__
from vllm_stack.cli_options import Seconds, option, out_option, render_options
from vllm_stack.errors import StackError
from vllm_stack.make_options import make_options
from vllm_stack.options import Options
from vllm_stack.stack_file import as_toml, file_option, models_of, stack_of

_Function = TypeVar("_Function", bound=Callable[..., Any])
# What no file is named for, and what is not our doing: a full disk behind stdout, too many open files.
_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)


def main() -> None:
    """Run the command line and exit: 0 ok, 1 expected failure, 2 usage, 3 a bug of ours, 130 Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal need not know every letter
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command line and give its exit code."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # see __main__
        result = _group.main(argv, prog_name="vllm-stack", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except StackError as error:
        _say(f"vllm-stack: {_one_line(str(error))}")
        return error.exit_code
    except click.exceptions.Abort:
        return 130
    except click.ClickException as error:
        try:
            error.show()
        except OSError:
            _silence(sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except (_ReaderLeft, BrokenPipeError):
        # `vllm-stack ... | head`: nothing is wrong, and nothing more can be said.
        _silence(sys.stdout)
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _OF_THE_MACHINE:
            _report_bug(argv)
            return 3
        if error.filename is None:
            _silence(sys.stdout)
        named = "" if error.filename is None else f"{error.filename}: "
        _say(f"vllm-stack: {_one_line(named)}{error.strerror or error}")
        return 1
    except Exception:  # the one catch-all: what gets here is our bug
        _report_bug(argv)
        return 3


def _say(line: str) -> None:
    """Write a line to stderr, unless there is none that takes it."""
    try:
        click.echo(line, err=True)
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO | None) -> None:
    """Let what a stream could not be rid of go nowhere: the interpreter would complain of it at its end."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        if stream is not None:
            os.dup2(nowhere.fileno(), stream.fileno())


def _one_line(message: str) -> str:
    return message.replace("\n", "\\n").replace("\r", "\\r")


def _report_bug(argv: list[str]) -> None:
    import platform
    import traceback

    verb = argv[0] if argv else ""
    _say(
        "vllm-stack: this is a bug of ours. Please report it with what follows:\n\n"
        f"vllm-stack {__version__}, Python {platform.python_version()}, {platform.platform()}, {verb!r}\n"
        f"{traceback.format_exc()}"
    )


class _ReaderLeft(Exception):
    """Whoever read our output does not any more."""


class _Group(click.Group):
    """Takes a broken pipe out of click's hands, which would make exit code 1 of it."""

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*args, **settings)
        except BrokenPipeError:
            raise _ReaderLeft from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise _ReaderLeft from None


@click.group(
    cls=_Group,
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


def _stack_options(function: _Function) -> _Function:
    """Declare MODEL, what follows `--`, and the options of `render`; the function gets the options made."""

    @functools.wraps(function)
    def with_options(**settings: Any) -> Any:
        context = click.get_current_context()
        own = {name: settings[name] for name in ("dry_run", "as_json", "as_toml") if name in settings}
        if own.get("as_toml"):
            return click.echo(as_toml(context), nl=False)
        own.pop("as_toml", None)
        return function(make_options(models_of(context), **stack_of(context)), **own)

    decorated = file_option(out_option(render_options(with_options)))
    decorated = click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM_OPTIONS...]")(
        decorated
    )
    return cast("_Function", click.argument("model", required=False)(decorated))


@_group.command()
@_stack_options
@click.option("--dry-run", is_flag=True, help="Print the files instead of writing them.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
@click.option(
    "--toml",
    "as_toml",
    is_flag=True,
    help="Print the file for --file that means the same as this command line, and do nothing else.",
)
def render(models: Sequence[Options], dry_run: bool, as_json: bool) -> None:
    """Check the machine and write a stack for MODEL (a directory or a hub name), or for those of a file.

    Everything after `--` goes to `vllm serve` as it is:

    \b
      vllm-stack render Qwen/Qwen3-8B --workers 2 -- --max-model-len 8192 --dtype bfloat16
      vllm-stack render -f stack.toml
    """
    from vllm_stack.commands.render import plan_json, render_stack, summary

    rendered = render_stack(models, dry_run)
    if as_json:
        click.echo(plan_json(rendered))
        return
    for line in summary(rendered, written=not dry_run):
        click.echo(line)
    if dry_run:
        for file in rendered.files:
            click.echo(f"\n===== {file.path}\n{file.text}", nl=False)


@_group.command()
@_stack_options
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(models: Sequence[Options], as_json: bool) -> None:
    """Explain the stack that `render` would write: who gets which GPUs, what fits, and why.

    Takes the options of `render`, checks what `render` checks, and writes nothing.

    \b
      vllm-stack plan Qwen/Qwen3-8B --workers auto --tensor-parallel-size auto
    """
    from vllm_stack.commands.plan import explain
    from vllm_stack.commands.render import plan_json, render_stack

    rendered = render_stack(models, dry_run=True)
    if as_json:
        click.echo(plan_json(rendered))
        return
    for line in explain(rendered):
        click.echo(line)


@_group.command()
@_stack_options
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def check(models: Sequence[Options], as_json: bool) -> int:
    """Show whether a stack for MODEL can run here: one row for each check, and what to do.

    Takes the options of `render`, looks at what `render` looks at, and writes nothing. Exit code 1 if any
    check refuses.

    \b
      vllm-stack check Qwen/Qwen3-8B --workers 2 -- --max-model-len 8192
    """
    from vllm_stack.commands.check import check_machine

    return check_machine(models, as_json)


@_group.command()
@click.argument("model")
@option("--revision", help="Branch, tag or commit.  [default: main]")
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
def fetch(model: str, revision: str | None, as_json: bool) -> None:
    """Download MODEL from the hub once, before N workers race for it, and say its commit.

    What is there already is not downloaded again, and what Ctrl-C broke off goes on where it was.
    """
    from vllm_stack.commands.fetch import fetch_model

    fetch_model(model, revision, as_json)


def _timeout_option(help_text: str) -> Callable[[_Function], _Function]:
    return option(
        "--timeout",
        type=Seconds(min=0),
        default=1800.0,
        show_default=True,
        metavar="SECONDS",
        help=help_text,
    )


@_group.command()
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


@_group.command()
@out_option
@_timeout_option("How long to wait.")
@click.option("--any", "any_worker", is_flag=True, help="Be content with one ready worker.")
def wait(out: Path, timeout: float, any_worker: bool) -> None:
    """Show how the workers come up, until all are ready.

    Ends with exit code 1, the last lines of its log and the reason when a worker fails.
    """
    from vllm_stack.commands.wait import wait_until_ready

    wait_until_ready(out, timeout, any_worker)


@_group.command()
@out_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(out: Path, as_json: bool) -> int:
    """Show every worker as it truly is: what it is doing, since when, and why it last failed.

    A worker is called ready only if it has just said so itself. Exit code 0: all are ready; 1: some
    are not; 3: none is.
    """
    from vllm_stack.commands.status import show_status

    return show_status(out, as_json)


@_group.command()
@out_option
def down(out: Path) -> None:
    """Stop the stack and see to it that no process of it is left."""
    from vllm_stack.commands.down import stop_stack

    stop_stack(out)


@_group.command()
@out_option
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
    from vllm_stack.keys import check_keys, read_key_file

    keys = check_keys((*api_keys, *(read_key_file(api_key_file) if api_key_file else ())))
    drill_stack(DrillOptions(keys=keys, **settings))


@_group.command()
@out_option
@click.option("--json", "as_json", is_flag=True, help="Say what was removed as JSON.")
def clean(out: Path, as_json: bool) -> None:
    """Remove what a stack left behind that was killed all at once: processes, sockets, records.

    Logs, rendered files, secrets and the records of failures stay.
    """
    from vllm_stack.commands.clean import clean_stack

    clean_stack(out, as_json)
