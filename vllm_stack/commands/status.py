"""`vllm-stack status`: every worker as it truly is."""

from __future__ import annotations

import json
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from vllm_stack.commands.stack import Stack, find_stack
from vllm_stack.errors import NoStack
from vllm_stack.layout import failure_record, phase_note
from vllm_stack.worker.failure import last_failure
from vllm_stack.worker.phase import Phase, PhaseNote, read_phase
from vllm_stack.worker.probe import Probe

ALL_READY, DEGRADED, NOTHING_SERVES = 0, 1, 3
# Phases in which a server may answer: its wrapper notes a moment later that it does.
_SERVING = (Phase.STARTING, Phase.READY)


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker now; `since` and `until` are Unix times, None where nobody knows."""

    name: str
    model: str
    address: str
    state: str
    since: float | None
    until: float | None
    detail: str
    last_failure: str | None
    failed_at: str | None


def show_status(out: Path, as_json: bool) -> int:
    """Print the state of the stack in `out` and give the exit code; raises `NoStack`."""
    stack = find_stack(out)
    programs = _programs(stack)
    workers = [_look_at(stack, name, programs.get(name, "")) for name in stack.worker_names]
    proxy = programs["proxy"].lower()
    if as_json:
        found = {"proxy": proxy, "workers": [asdict(worker) for worker in workers]}
        click.echo(json.dumps(found, indent=2))
    else:
        several = len(stack.models) > 1
        rows = [[worker.name, worker.state, _how_long(worker), _story(worker, several)] for worker in workers]
        for line in _table([["proxy", proxy, "", stack.door.url], *rows]):
            click.echo(line)
    ready = sum(worker.state == Phase.READY for worker in workers)
    if proxy != "running" or (workers and not ready):
        return NOTHING_SERVES
    return ALL_READY if ready == len(workers) else DEGRADED


def judge(note: PhaseNote | None, program: str, trouble: str | None) -> tuple[str, str]:
    """Give a worker's state in a word, and what more there is to say.

    `note` is the wrapper's, None if no wrapper lives; `program` is supervisord's word; `trouble`
    is what the server's own /health has against it, just now.
    """
    if note is None:
        return ("starting" if program in ("STARTING", "RUNNING") else program.lower() or "unknown"), ""
    if note.phase in _SERVING and trouble is None:
        return Phase.READY, note.detail
    if note.phase is Phase.READY:
        return "not answering", f"it was ready, but now {trouble}"
    return note.phase, note.detail


def _look_at(stack: Stack, name: str, program: str) -> WorkerStatus:
    note = read_phase(phase_note(stack.layout.state, name))
    trouble = None
    if note is not None and note.phase in _SERVING:
        trouble = Probe(name, stack.workers[name], stack.admin_port).health()
    state, detail = judge(note, program, trouble)
    failure = last_failure(failure_record(stack.layout.state, name))
    return WorkerStatus(
        name=name,
        model=stack.model_of(name),
        address=str(stack.workers[name]),
        state=state,
        since=note.since if note else None,
        until=note.until if note else None,
        detail=detail,
        last_failure=None if failure is None else f"vLLM {failure.story}",
        failed_at=None if failure is None else failure.time,
    )


def _programs(stack: Stack) -> dict[str, str]:
    """Ask supervisord for the state of its programs; while it shuts down, all of them are stopping."""
    try:
        found: list[dict[str, Any]] = stack.supervisor.call("getAllProcessInfo")
    except xmlrpc.client.Fault:
        return dict.fromkeys(("proxy", *stack.worker_names), "STOPPING")
    except OSError:
        raise NoStack(
            f"supervisord is not running, so nothing is: vllm-stack up --out {stack.layout.out}"
        ) from None
    states = {program["name"]: str(program["statename"]) for program in found}
    return {"proxy": "UNKNOWN", **states}


def _how_long(worker: WorkerStatus) -> str:
    if worker.until is not None:
        return f"{max(0.0, worker.until - time.time()):.0f} s to go"
    return "" if worker.since is None else f"{time.time() - worker.since:.0f} s"


def _story(worker: WorkerStatus, several: bool) -> str:
    """Say where it is or what it does, and of what model, where there are several."""
    what = f"{worker.model}; " if several else ""
    if worker.detail or worker.last_failure is None:
        return f"{what}{worker.detail or worker.address}"
    return f"{what}{worker.address}; before: {worker.last_failure} ({worker.failed_at})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3])).rstrip()
        for row in rows
    ]
