"""What `check`, `plan` and `render` have in common: look at the machine, decide what was left open, check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import click

from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import run_checks
from vllm_stack.inventory import take_inventory, taken_port
from vllm_stack.options import Options
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.sharing import share_out


@dataclass(frozen=True, slots=True)
class Examined:
    """Models with nothing left open, what the checks found, and how `auto` was decided."""

    deployments: tuple[Deployment, ...]
    findings: Mapping[str, Finding]
    decisions: tuple[str, ...]


def examine(models: Sequence[Options]) -> Examined:
    """Look, decide and check; writes nothing. Raises `StackError` where `auto` has no answer."""
    inventories = take_inventory(models, say=lambda line: click.echo(line, err=True))
    deployments, decisions = share_out([*map(Deployment, models, inventories)])
    ports = taken_port([one.options for one in deployments])
    deployments = tuple(replace(one, inventory=replace(one.inventory, ports=ports)) for one in deployments)
    return Examined(deployments, run_checks(deployments), decisions)
