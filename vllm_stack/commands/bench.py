"""`vllm-stack bench`: a load on a running stack, through its door and past it, and what came of it."""

from __future__ import annotations

import asyncio
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from vllm_stack import __version__
from vllm_stack.bench.asking import Asking
from vllm_stack.bench.burst import Amount
from vllm_stack.bench.figures import costs_of, figures_of
from vllm_stack.bench.plot import check_plot, draw
from vllm_stack.bench.progress import Bar
from vllm_stack.bench.report import Report, as_json, as_tables
from vllm_stack.bench.sample import Objective
from vllm_stack.bench.sweep import Load, Sweep
from vllm_stack.bench.way import DIRECT, PROXY, Server, Way, in_words
from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.drill.door import AdminDoor, Look
from vllm_stack.errors import NoStack, StackError, UsageError
from vllm_stack.files import shown
from vllm_stack.terminal_text import printable

# Where nobody looks at it, a table is as wide as it needs to be.
_WIDTH = 200


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What the user asked of `vllm-stack bench`; `duration` in seconds, the objectives in milliseconds."""

    out: Path
    concurrency: tuple[int, ...] = (1, 4, 16, 64)
    requests: int | None = None
    duration: float = 6.0
    prompt_tokens: int = 128
    max_tokens: int = 64
    shared_prefix: bool = False
    slo_ttft: float | None = None
    slo_itl: float | None = None
    worker: str | None = None
    direct: bool = True
    model: str | None = None
    key: str | None = None
    plot: Path | None = None
    as_json: bool = False

    @property
    def amount(self) -> Amount:
        return Amount(self.requests, self.duration)

    @property
    def objective(self) -> Objective:
        return Objective(_seconds(self.slo_ttft), _seconds(self.slo_itl))


def bench_stack(options: BenchOptions) -> None:
    """Send the load and print the report; after Ctrl-C the report of what there is, then `KeyboardInterrupt`.

    Raises `UsageError` for options that do not go together or a key that is not taken, `NoStack` when the
    stack does not run, `StackError` when nothing is ready or no request was answered.
    """
    _check(options)
    stack = find_stack_with_door(options.out)
    look = _look(stack)
    model = options.model or next(iter(stack.models))
    ways, notes = _choose_ways(stack, look, model, options)
    asking = Asking(model, options.max_tokens)
    load = Load(asking, options.concurrency, options.amount, options.prompt_tokens, options.shared_prefix)
    sweep = Sweep(ways, load)
    _announce(stack, look, sweep, notes)
    _raise_file_limit(max(options.concurrency))
    interrupted = _run(sweep)
    if sweep.bursts:
        _show(sweep, options, notes)
    if interrupted:
        raise KeyboardInterrupt
    if not any(sample.is_whole for burst in sweep.bursts for sample in burst.samples):
        raise StackError("No request was answered: the lines above say why")


def _check(options: BenchOptions) -> None:
    most = max(options.concurrency)
    if options.requests is not None and options.requests < most:
        raise UsageError(
            f"--requests {options.requests} cannot keep {most} clients busy: give {most} or more, or fewer "
            "clients with --concurrency"
        )
    if options.plot is not None:
        check_plot(options.plot)


# What is there to be asked.


def _look(stack: Stack) -> Look:
    out = shown(stack.layout.out)
    if not stack.supervisord_runs():
        raise NoStack(f"The stack in {out} is not running: vllm-stack up --out {out}")
    look = AdminDoor(stack.admin_port).look()
    if look is None or not look.ready:
        raise StackError(f"Nothing in {out} is ready to serve: `vllm-stack wait` shows how it comes up")
    return look


def _choose_ways(
    stack: Stack, look: Look, model: str, options: BenchOptions
) -> tuple[tuple[Way, ...], list[str]]:
    """Give the ways to measure, and what has to be said of the choice."""
    if options.worker is not None:
        return (Way(DIRECT, (_worker(stack, look, options.worker),)),), []
    door = Way(PROXY, (Server("the door", stack.door.url.removesuffix("/v1"), None, options.key),))
    if not options.direct:
        return (door,), []
    servers = _servers_of(stack, model)
    if servers is None:
        return (door,), [f"Not compared with its workers: which of them serve {model!r} is not known"]
    ready = [name for name in servers if name in look.ready and name in stack.workers]
    if not ready:
        return (door,), ["Not compared with workers: none of this stack's own serves the model now"]
    if any(name in look.ready for name in servers if name not in stack.workers):
        return (door,), ["Not compared with the workers: servers elsewhere (--upstream) are asked, too"]
    out = [name for name in servers if name not in ready]
    notes = [f"Not ready, so measured without: {', '.join(out)}"] if out else []
    key = _internal_key(stack)
    workers = tuple(Server.worker(name, stack.workers[name], key) for name in ready)
    return (door, Way(DIRECT, workers)), notes


def _servers_of(stack: Stack, model: str) -> tuple[str, ...] | None:
    """Give who serves a model: all, if there is but one, by whatever name it is called."""
    if len(stack.models) == 1:
        return stack.server_names
    return stack.models.get(model)


def _worker(stack: Stack, look: Look, name: str) -> Server:
    if name not in stack.workers:
        raise UsageError(f"--worker {name}: the stack has {', '.join(stack.worker_names) or 'no workers'}")
    if name not in look.ready:
        raise StackError(f"{name} is {look.states.get(name, 'not known to the proxy')}: nothing to measure")
    return Server.worker(name, stack.workers[name], _internal_key(stack))


def _internal_key(stack: Stack) -> str:
    return stack.layout.internal_key.read_text("utf-8").strip()


# The load.


def _announce(stack: Stack, look: Look, sweep: Sweep, notes: list[str]) -> None:
    """Say what is about to be sent, and to whom, before it is."""
    load = sweep.load
    levels = ", ".join(str(level) for level in load.levels)
    each = f"{load.amount.requests} requests" if load.amount.requests else f"{load.amount.seconds:g} s"
    click.echo(
        f"Sends prompts of about {load.prompt_tokens} tokens to {printable(load.asking.model)}, for answers "
        f"of {load.asking.max_tokens}, with {levels} clients at a time, {each} each:",
        err=True,
    )
    for way in sweep.ways:
        where = stack.door.url if way.name == PROXY else ", ".join(server.name for server in way.servers)
        click.echo(f"  {in_words(way.name)}: {where}", err=True)
    if look.busy:
        requests = "1 request" if look.busy == 1 else f"{look.busy} requests"
        click.echo(f"The stack serves other traffic now ({requests} in flight): both will feel it", err=True)
    for note in notes:
        click.echo(note, err=True)


def _run(sweep: Sweep) -> bool:
    """Run it under a progress bar; tells whether it was interrupted."""
    try:
        with Bar(len(sweep.steps)) as bar:
            asyncio.run(sweep.run(bar.begin, bar.note))
    except KeyboardInterrupt:
        return True
    return False


def _raise_file_limit(connections: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# The report.


def _show(sweep: Sweep, options: BenchOptions, notes: list[str]) -> None:
    figures = figures_of(sweep.bursts, options.objective)
    findings = [*notes, *_findings(sweep, options)]
    report = Report(figures, costs_of(sweep.bursts), findings, _told(sweep, options))
    if options.as_json:
        click.echo(as_json(report))
    else:
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
        for piece in as_tables(report):
            console.print(piece)
    if options.plot is not None and figures:
        model = printable(sweep.asking.model)
        title = f"{model}: about {options.prompt_tokens} tokens in, {options.max_tokens} out"
        draw(figures, options.plot, title)
        click.echo(f"Wrote {shown(options.plot.absolute())}", err=True)


def _findings(sweep: Sweep, options: BenchOptions) -> list[str]:
    """Say in what the load was other than it was asked for."""
    found = []
    if not sweep.asking.fixed_length:
        found.append("The server does not know ignore_eos: answers may be shorter than --max-tokens")
    if options.objective.asks:
        wants = [
            f"TTFT within {options.slo_ttft:g} ms" if options.slo_ttft is not None else "",
            f"{options.slo_itl:g} ms a token on average" if options.slo_itl is not None else "",
        ]
        found.append(f"good/s: requests a second with {' and '.join(filter(None, wants))}")
    return found


def _told(sweep: Sweep, options: BenchOptions) -> dict[str, Any]:
    return {
        "version": __version__,
        "model": sweep.asking.model,
        "route": sweep.asking.path,
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
        "ignore_eos": sweep.asking.fixed_length,
        "shared_prefix": options.shared_prefix,
        "requests": options.requests,
        "duration": None if options.requests else options.duration,
        "slo": {"ttft": options.objective.first, "itl": options.objective.per_token},
        "ways": {way.name: [server.name for server in way.servers] for way in sweep.ways},
    }


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000
