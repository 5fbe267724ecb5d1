"""All verbs together: under which headings `--help` lists them, and which variables their options have."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

from vllm_stack.verbs.options import ENVIRONMENT

# In the order in which they are needed; a verb that is not named here is listed under the last heading.
_HEADINGS = {
    "Make a stack": ("check", "plan", "fetch", "render"),
    "Run it": ("up", "wait", "down", "join", "haproxy"),
    "Look at it": ("status", "top", "logs", "bench"),
    "Operate it": (),
}


class ReaderLeft(Exception):
    """Whoever read our output does not any more."""


class Group(click.Group):
    """The command line: a group whose verbs have headings, and whose options all have a variable."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Take a verb; an option that has no variable yet gets VLLM_STACK_<VERB>_<OPTION>.

        An option of the stack has one already (`cli_options.option`), which is the same for all verbs.
        """
        super().add_command(cmd, name)
        for path, verb in with_subcommands(cmd):
            for option in options_of(verb):
                if option.envvar is None:
                    option.envvar = own_variable(path, option)
                    option.show_envvar = True

    def headings(self) -> Iterator[tuple[str, list[click.Command]]]:
        """Give the headings with their verbs, each verb once."""
        left = dict(self.commands)
        *named, last = _HEADINGS.items()
        for heading, names in named:
            yield heading, [left.pop(name) for name in names if name in left]
        yield last[0], list(left.values())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs by their headings."""
        width = max(map(len, self.commands))
        limit = formatter.width - 6 - width
        for heading, verbs in self.headings():
            with formatter.section(heading):
                formatter.write_dl(
                    [(str(verb.name).ljust(width), verb.get_short_help_str(limit)) for verb in verbs]
                )

    # click would make exit code 1 of a broken pipe: it is taken out of its hands.

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*args, **settings)
        except BrokenPipeError:
            raise ReaderLeft from None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderLeft from None


def with_subcommands(verb: click.Command, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Give a verb and, where it has some, its subcommands, each with what one types: `keys add`."""
    path = f"{above} {verb.name}".strip()
    yield path, verb
    if isinstance(verb, click.Group):
        for subcommand in verb.commands.values():
            yield from with_subcommands(subcommand, path)


def options_of(verb: click.Command) -> list[click.Option]:
    """Give the options of a verb, in the order of its help."""
    return [one for one in verb.params if isinstance(one, click.Option)]


def own_variable(path: str, option: click.Option) -> str:
    """Name the variable of an option that only this verb has; `path` is what one types for the verb."""
    name = next(name for name in option.opts if name.startswith("--"))
    return ENVIRONMENT + re.sub("[ -]", "_", f"{path} {name.removeprefix('--')}").upper()
