"""What a shell completes: the verb that prints the script for it, and what it asks for an argument."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class


class WorkerName(click.ParamType[str]):
    """The name of a worker; a shell completes those of the stack in --out."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem[str]]:
        """Give the workers that begin so; none where there is no stack."""
        from vllm_stack.commands.stack import find_stack
        from vllm_stack.errors import StackError

        try:
            stack = find_stack(Path(ctx.params.get("out") or "out"))
        except StackError:
            return []
        return [CompletionItem(name) for name in stack.worker_names if name.startswith(incomplete)]


def directories(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Have the shell complete a directory, as one of a model."""
    return [CompletionItem(incomplete, type="dir")]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that lets a shell complete verbs, options, files and workers.

    \b
      eval "$(vllm-stack completion bash)"                    # in ~/.bashrc; zsh in ~/.zshrc
      vllm-stack completion fish > ~/.config/fish/completions/vllm-stack.fish
    """
    root = click.get_current_context().find_root()
    script_of = get_completion_class(shell)
    assert script_of is not None  # noqa: S101 - click knows the shells that are offered
    click.echo(script_of(root.command, {}, "vllm-stack", "_VLLM_STACK_COMPLETE").source())


COMMANDS = (completion,)
