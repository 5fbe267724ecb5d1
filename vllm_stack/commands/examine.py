"""What `check`, `plan` and `render` have in common: look at the machine, decide what was left open, check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import click

from vllm_stack.auto import decide
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import run_checks
from vllm_stack.inventory import Inventory, take_inventory, taken_port
from vllm_stack.options import Options


@dataclass(frozen=True, slots=True)
class Examined:
    """Options with nothing left open, the machine, what the checks found, and how `auto` was decided."""

    options: Options
    inventory: Inventory
    findings: Mapping[str, Finding]
    decisions: tuple[str, ...]


def examine(options: Options) -> Examined:
    """Look, decide and check; writes nothing. Raises `StackError` where `auto` has no answer."""
    inventory = take_inventory(options, say=lambda line: click.echo(line, err=True))
    decisions: tuple[str, ...] = ()
    if options.automatic:
        options, decisions = decide(options, inventory)
        # More workers need more ports than were looked at.
        inventory = replace(inventory, ports=taken_port(options))
    return Examined(options, inventory, run_checks(options, inventory), decisions)
