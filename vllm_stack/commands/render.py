"""`vllm-stack render`: check the machine, decide the stack, write it."""

from __future__ import annotations

import json

from vllm_stack.address import TcpAddress, parse_address
from vllm_stack.errors import OutputError
from vllm_stack.files import File, make_directories, shown, write_files
from vllm_stack.inventory import take_inventory
from vllm_stack.keys import new_key
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.plan import Plan, make_plan
from vllm_stack.ports import check_free
from vllm_stack.render import render


def render_stack(options: Options, dry_run: bool = False) -> tuple[Plan, list[File]]:
    """Check, decide and write a stack; with `dry_run` write nothing. Gives the plan and its files."""
    plan = make_plan(options, take_inventory(options))
    own_ports = _ports_of_running_stack(plan.layout)
    check_free(use for use in plan.port_uses if use.port not in own_ports)
    files = render(plan)
    if not dry_run:
        _write(plan, files)
    return plan, files


def _write(plan: Plan, files: list[File]) -> None:
    layout = plan.layout
    if layout.out.exists() and not layout.out.is_dir():
        raise OutputError(f"--out {layout.out} is a file")
    boxes = (layout.box(name) for name in ("proxy", *(worker.name for worker in plan.workers)))
    make_directories((*layout.directories, *boxes))
    write_files([*_internal_key(plan), *files])
    # A running worker that was rendered away goes by its copy (see `in_force`).
    for path in {layout.worker_json(name) for name in layout.worker_boxes()} - {f.path for f in files}:
        path.unlink(missing_ok=True)


def _internal_key(plan: Plan) -> list[File]:
    """Give the key of the workers, unless there is one already.

    It outlives renders: the workers of a running stack ask for the one they know.
    """
    if plan.layout.internal_key.exists():
        return []
    return [File(plan.layout.internal_key, new_key() + "\n")]


def _ports_of_running_stack(layout: Layout) -> frozenset[int]:
    """Give the ports that this very stack holds now: rendering over it must not be refused."""
    if not layout.socket.exists():
        return frozenset()
    from vllm_stack.supervisor_rpc import Supervisor  # a tenth of this verb's time, rarely needed

    if Supervisor(layout.socket).pid() is None:
        return frozenset()
    try:
        in_force = layout.stack_in_force() or layout.stack_json
        stack = json.loads(in_force.read_text("utf-8"))
        addresses = [parse_address(worker["address"]) for worker in stack["workers"]]
        ports = [address.port for address in addresses if isinstance(address, TcpAddress)]
        return frozenset((stack["door"]["port"], stack["admin_port"], *ports))
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def summary(plan: Plan, written: bool) -> list[str]:
    """Say what was decided, line by line, and how to start it."""
    options, layout = plan.options, plan.layout
    version = f"vLLM {plan.vllm_version}" if plan.vllm_version else "vLLM"
    elsewhere = f" and {len(options.upstreams)} elsewhere" if options.upstreams else ""
    lines = [f"{options.model}: {options.workers} x {version}{elsewhere}"]
    for worker in plan.workers:
        place = f"GPU {','.join(worker.gpus)}" if worker.gpus else f"CPU {','.join(map(str, worker.cores))}"
        lines.append(f"  {worker.name}  {worker.address}  {place}")
    lines += [f"  upstream-{index}  http://{address}" for index, address in enumerate(options.upstreams)]
    lines.append(f"  proxy     {options.scheme}://{plan.door_address}/v1  {options.policy}")
    lines += [f"Note: {note}." for note in plan.notes]
    if written:
        conf = shown(layout.supervisord_conf)
        lines += [
            f"Wrote {shown(layout.out)}/. Next:",
            f"  supervisord -c {conf}",
            f"  supervisorctl -c {conf} status",
        ]
    return lines


def plan_json(plan: Plan, files: list[File]) -> str:
    """Give the plan for programs: what stack.json holds, and the notes."""
    stack = next(file for file in files if file.path == plan.layout.stack_json)
    return json.dumps({**json.loads(stack.text), "out": str(plan.layout.out), "notes": plan.notes}, indent=2)
