"""The verbs that look at a machine and make a stack for it, as the command line spells them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from vllm_stack.make_options import make_options
from vllm_stack.options import Options
from vllm_stack.stack_file import as_toml, file_option, models_of, stack_of
from vllm_stack.verbs.completion import directories
from vllm_stack.verbs.options import option, out_option, render_options

_Function = TypeVar("_Function", bound=Callable[..., Any])


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
    return cast("_Function", click.argument("model", required=False, shell_complete=directories)(decorated))


@click.command()
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


@click.command()
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


@click.command()
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


@click.command()
@click.argument("model")
@option("--revision", help="Branch, tag or commit.  [default: main]")
@click.option("--json", "as_json", is_flag=True, help="Print what was fetched as JSON.")
def fetch(model: str, revision: str | None, as_json: bool) -> None:
    """Download MODEL from the hub once, before N workers race for it, and say its commit.

    What is there already is not downloaded again, and what Ctrl-C broke off goes on where it was.
    """
    from vllm_stack.commands.fetch import fetch_model

    fetch_model(model, revision, as_json)


COMMANDS = (render, plan, check, fetch)
