"""Every verb and every option on one page of Markdown, as the command line itself tells them.

It becomes docs/cli.md; nothing in it depends on the machine.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence

import click

from vllm_stack.cli import group
from vllm_stack.verbs.group import options_of, own_variable, with_subcommands

_FOREWORD = """\
# The command line

This page is written by `make docs` from what `vllm-stack --help` knows.

Options are set, first come first: on the command line, by a variable in the environment, in a stack file
(`--file`), by default. An option of the stack has one variable for all verbs that take it,
`VLLM_STACK_<OPTION>`; what a verb has for itself is `VLLM_STACK_<VERB>_<OPTION>`. A flag is set by `1`; an
option that may be repeated takes several words, with spaces between them.
"""
# The verb whose options others take, too.
_SHARED_BY_OTHERS = "render"
_DEFAULT = re.compile(r"\s*\[default: (?P<value>[^\]]*)\]")


def reference() -> str:
    """Give the whole page."""
    root = click.Context(group, info_name="vllm-stack")
    parts = [_FOREWORD, f"{group.epilog}\n", "\n".join(_contents())]
    for heading, verbs in group.headings():
        parts.append(f"## {heading}\n")
        for path, verb in (found for one in verbs for found in with_subcommands(one)):
            parts.append("\n".join(_section(path, verb, root)))
    return "\n".join(parts)


def _contents() -> Iterator[str]:
    for heading, verbs in group.headings():
        links = ", ".join(_link(str(verb.name)) for verb in verbs)
        yield f"* {heading}: {links}"
    yield ""


def _section(path: str, verb: click.Command, root: click.Context) -> Iterator[str]:
    context = click.Context(verb, info_name=path, parent=root)
    yield f"### {context.command_path}\n"
    yield f"    {context.command_path} {' '.join(verb.collect_usage_pieces(context))}\n"
    yield from map(_paragraph, inspect.cleandoc(verb.help or "").split("\n\n"))
    told_elsewhere = _told_elsewhere(verb)
    if told_elsewhere:
        yield f"It takes the options of the stack as {_link(_SHARED_BY_OTHERS)} does, and its own:\n"
    yield from _table([one for one in options_of(verb) if one.envvar not in told_elsewhere], context)


def _told_elsewhere(verb: click.Command) -> frozenset[object]:
    """Give the variables of the options that another verb tells, where this one takes all of them."""
    other = group.commands[_SHARED_BY_OTHERS]
    shared = frozenset(
        one.envvar for one in options_of(other) if one.envvar != own_variable(_SHARED_BY_OTHERS, one)
    )
    takes_all = shared <= {one.envvar for one in options_of(verb)}
    return shared if takes_all and verb is not other else frozenset()


def _link(verb: str) -> str:
    return f"[{verb}](#vllm-stack-{verb})"


def _paragraph(text: str) -> str:
    """Make Markdown of a paragraph of click's help; one that begins with \\b is as it stands."""
    if text.startswith("\b\n"):
        return textwrap.indent(textwrap.dedent(text.removeprefix("\b\n")), "    ") + "\n"
    return " ".join(text.split()) + "\n"


def _table(options: Sequence[click.Option], context: click.Context) -> Iterator[str]:
    if not options:
        return
    yield "| option | default | |"
    yield "|---|---|---|"
    yield from (_row(option, context) for option in options)
    yield ""


def _row(option: click.Option, context: click.Context) -> str:
    extra = option.get_help_extra(context)
    text = option.help or ""
    said = _DEFAULT.search(text)
    default = said["value"] if said else extra.get("default", "")
    bounds = f" ({extra['range']})" if "range" in extra else ""
    takes = "" if option.is_flag else f" {option.make_metavar(context).replace('INTEGER RANGE', 'N')}"
    spelled = (*option.opts, *option.secondary_opts)
    names = ", ".join(f"`{name}{takes if name.startswith('--') else ''}`" for name in spelled)
    cells = (f"{names}<br>`{option.envvar}`", default, _DEFAULT.sub("", text) + bounds)
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"
