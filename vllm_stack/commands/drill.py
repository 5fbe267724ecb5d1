"""`vllm-stack drill`: do to a running stack what will happen to it anyway, and report what clients saw."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.drill.conduct import Conductor
from vllm_stack.drill.door import AdminDoor, Door, Look, choose_requests
from vllm_stack.drill.faults import DRILLS, Site
from vllm_stack.drill.interrupts import ending_once
from vllm_stack.drill.report import as_json, as_table, has_passed
from vllm_stack.drill.verdict import Result, Verdict
from vllm_stack.errors import NoStack, StackError, UsageError
from vllm_stack.files import shown
from vllm_stack.layout import drain_order
from vllm_stack.records.drain_order import read_order

_DOES = {
    "api-server": "kills an API server",
    "engine": "kills an engine",
    "proxy": "kills a process of the proxy",
    "hang": "stops an engine",
    "restart": "restarts a worker",
}


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """What the user asked of `vllm-stack drill`; `timeout` in seconds, for each drill."""

    out: Path
    only: tuple[str, ...] = ()
    worker: str | None = None
    clients: int = 4
    max_tokens: int = 128
    timeout: float = 900.0
    keys: tuple[str, ...] = ()
    as_json: bool = False
    yes: bool = False


def drill_stack(options: DrillOptions) -> None:
    """Hold the drills and print the report; raises `StackError` unless all passed.

    `UsageError` when nobody is there to be asked, `NoStack` when there is nothing to drill.
    """
    names = [name for name in DRILLS if not options.only or name in options.only]
    if not (options.yes or sys.stdin.isatty()):
        raise UsageError(
            "A drill hurts a running stack, and nobody is here to be asked: --yes says that you mean it"
        )
    stack = find_stack_with_door(options.out)
    if stack.on_ray:
        raise UsageError("The drills are for workers under supervisord; this stack's are Ray's")
    workers = _taking_part(stack)
    look = _look(stack, workers)
    worker = _choose_worker(stack, look, workers, options.worker)
    door = _door(stack, options.keys)
    _ask(names, stack, look, options.yes)
    with ending_once():
        results = _hold(options, names, _site(stack, worker), stack, workers, door)
    if options.as_json:
        click.echo(as_json(str(stack.layout.out), worker, results))
    else:
        for line in as_table(results):
            click.echo(line)
    if not has_passed(results):
        raise StackError(_failure(results))


def _taking_part(stack: Stack) -> tuple[str, ...]:
    """Give the workers that nobody has ordered out: of the others no drill can wait that they are ready."""
    orders = {name: read_order(drain_order(stack.layout.state, name)) for name in stack.worker_names}
    out = [name for name, order in orders.items() if order is not None]
    if out:
        click.echo(f"{', '.join(out)}: drained, so without a part in this (`vllm-stack readmit`)", err=True)
    return tuple(name for name in stack.worker_names if name not in out)


def _look(stack: Stack, workers: tuple[str, ...]) -> Look:
    """Look at the stack once; raises `NoStack` when it does not run, `StackError` when nothing is ready."""
    out = stack.layout.out
    if not stack.worker_names:
        raise NoStack(f"The stack in {out} runs no workers of its own: there is nothing to drill")
    if not stack.supervisor.pid():
        raise NoStack(f"The stack in {out} is not running: supervisord -c {stack.layout.supervisord_conf}")
    look = AdminDoor(stack.admin_port).look()
    if look is None or not look.ready.intersection(workers):
        raise StackError(
            f"No worker of the stack in {out} is ready: `vllm-stack wait` shows how they come up"
        )
    return look


def _choose_worker(stack: Stack, look: Look, workers: tuple[str, ...], asked: str | None) -> str:
    if asked is None:
        return next(name for name in workers if name in look.ready)
    if asked not in stack.worker_names:
        raise UsageError(f"--worker {asked}: the stack has {', '.join(stack.worker_names)}")
    if asked not in workers:
        raise UsageError(f"--worker {asked} is drained: choose another one, or `vllm-stack readmit {asked}`")
    return asked


def _door(stack: Stack, keys: tuple[str, ...]) -> Door:
    if stack.asks_for_key and not keys:
        raise UsageError("The door asks for a key: --api-key-file FILE")
    return Door(stack.door.scheme, stack.door.host, stack.door.port, next(iter(keys), None))


def _site(stack: Stack, worker: str) -> Site:
    return Site(
        stack.layout, stack.supervisor, worker, stack.door.port, stack.stop_seconds, stack.wedge_timeout
    )


def _ask(names: list[str], stack: Stack, look: Look, yes: bool) -> None:
    """Ask whether it is meant, and say when others are being served."""
    requests = "1 request" if look.busy == 1 else f"{look.busy} requests"
    busy = f", which serves other traffic now ({requests} in flight)" if look.busy else ""
    does = [_DOES[name] for name in names]
    what = does[0] if len(does) == 1 else f"{', '.join(does[:-1])} and {does[-1]}"
    sentence = f"This {what} on the stack in {shown(stack.layout.out)}/{busy}."
    if yes:
        click.echo(sentence, err=True)
    elif not click.confirm(f"{sentence} Go on?", err=True):
        raise StackError("Nothing was touched")


def _hold(
    options: DrillOptions,
    names: list[str],
    site: Site,
    stack: Stack,
    workers: tuple[str, ...],
    door: Door,
) -> list[Result]:
    """Hold one drill after another; once the stack does not come back, no further one."""
    # The worker that is hurt should have something to do.
    model = stack.model_of(site.worker) if len(stack.models) > 1 else None
    conductor = Conductor(
        site=site,
        workers=workers,
        admin=AdminDoor(stack.admin_port),
        door=door,
        requests=choose_requests(door, options.max_tokens, model),
        clients=options.clients,
        timeout=options.timeout,
        say=lambda line: click.echo(line, err=True),
    )
    results: list[Result] = []
    for name in names:
        if any(result.figures and result.figures.ready_again is None for result in results):
            results.append(
                Result(name, Verdict.NOT_RUN, ("The stack did not come back from the drill before",))
            )
            continue
        try:
            results.append(conductor.hold(name))
        except StackError as error:
            results.append(Result(name, Verdict.NOT_RUN, (str(error),)))
    return results


def _failure(results: list[Result]) -> str:
    bad = [result.drill for result in results if result.verdict in (Verdict.FAILED, Verdict.NOT_RUN)]
    if not bad:
        return "No drill was held: " + "; ".join(reason for result in results for reason in result.reasons)
    return f"{len(bad)} of {len(results)} drills did not pass: {', '.join(bad)}"
