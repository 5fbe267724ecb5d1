"""`vllm-stack render`: check the machine, decide the stack, write it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vllm_stack.checks.run import advice, refuse
from vllm_stack.commands.examine import Examined, examine
from vllm_stack.files import File, make_directories, shown, write_files
from vllm_stack.keys.api_key import new_key
from vllm_stack.options import Options
from vllm_stack.planning.plan import ModelPlan, Plan, make_plan
from vllm_stack.render import render


@dataclass(frozen=True, slots=True)
class Rendered:
    """A plan, its files, and what the user should know of both before starting it."""

    examined: Examined
    plan: Plan
    files: list[File]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided for the user, what they should know, and what may go wrong."""
        return (*self.examined.decisions, *self.plan.notes, *advice(self.examined.findings))


def render_stack(models: Sequence[Options], dry_run: bool = False) -> Rendered:
    """Check, decide and write a stack of these models; with `dry_run` write nothing.

    Raises the error of the first check that refuses; then nothing is written.
    """
    examined = examine(models)
    refuse(examined.findings)
    plan = make_plan(examined.deployments)
    rendered = Rendered(examined, plan, render(plan))
    if not dry_run:
        _write(plan, rendered.files)
    return rendered


def _write(plan: Plan, files: list[File]) -> None:
    layout = plan.layout
    boxes = (layout.box(name) for name in ("proxy", *(worker.name for worker in plan.workers)))
    make_directories((*layout.directories, *boxes))
    write_files([*_secrets(plan), *files])
    # A running worker that was rendered away goes by its copy (see `in_force`).
    for path in {layout.worker_json(name) for name in layout.worker_boxes()} - {f.path for f in files}:
        path.unlink(missing_ok=True)
    if plan.service is None:
        layout.unit.unlink(missing_ok=True)
    if plan.ray is None:
        layout.serve_yaml.unlink(missing_ok=True)


def _secrets(plan: Plan) -> list[File]:
    """Give the key of the workers, and the token of a Ray cluster, unless there is one already.

    They outlive renders: who runs asks for the one that he knows.
    """
    paths = (plan.layout.internal_key, *((plan.layout.ray_token,) if plan.ray else ()))
    return [File(path, new_key() + "\n") for path in paths if not path.exists()]


def summary(rendered: Rendered, written: bool) -> list[str]:
    """Say what was decided, line by line, and how to start it."""
    plan = rendered.plan
    options, layout = plan.options, plan.layout
    version = f"vLLM {plan.vllm_version}" if plan.vllm_version else "vLLM"
    several = len(plan.models) > 1
    lines = [line for model in plan.models for line in _model_lines(model, version, several)]
    if plan.ray is not None:
        lines += _ray_lines(plan)
    lines.append(f"  proxy     {options.scheme}://{plan.door_address}/v1  {options.policy}")
    lines += [f"Note: {note}." for note in rendered.notes]
    if written:
        lines += [f"Wrote {shown(layout.out)}/. Next:", *(f"  {step}" for step in _next_steps(plan))]
    return lines


def starting_steps(plan: Plan) -> Iterator[str]:
    """Say what starts what was written.

    The unit is copied: a link into a file system that is mounted late is not there when systemd starts.
    """
    if plan.service is None:
        yield f"supervisord -c {shown(plan.layout.supervisord_conf)}"
        return
    sudo = "" if plan.root else "sudo "
    yield f"{sudo}cp {shown(plan.layout.unit)} /etc/systemd/system/"
    yield f"{sudo}systemctl enable --now {plan.layout.unit.name}"


def _next_steps(plan: Plan) -> Iterator[str]:
    """Say what starts the stack, what joins it, and what shows it."""
    yield from starting_steps(plan)
    if plan.options.spans_boxes:
        head = f"{plan.options.ray_host}:{plan.options.ray_port}"
        copy = f"on every other box, with a copy of {shown(plan.layout.ray_token)}"
        yield f"vllm-stack join {head} --token-file COPY   # {copy}"
    yield f"supervisorctl -c {shown(plan.layout.supervisord_conf)} status"


def _ray_lines(plan: Plan) -> Iterator[str]:
    """Say what serves in the place of workers, and how boxes join it."""
    assert plan.head is not None  # noqa: S101 - asked only of a stack that Ray runs
    where = f"GPU {','.join(plan.head.gpus)}" if plan.head.gpus else "this box's CPU cores"
    yield f"  {plan.head.name}  {plan.head.address}  {where}"


def _model_lines(model: ModelPlan, version: str, several: bool) -> Iterator[str]:
    """List the servers of a model, with the names by which clients choose it where there is a choice."""
    elsewhere = f" and {len(model.upstreams)} elsewhere" if model.upstreams else ""
    called = f" as {', '.join(model.names)}" if several or len(model.names) > 1 else ""
    options = model.options
    count = f"{options.workers}" if options.on_ray else f"{len(model.workers)}"
    count += f" to {options.most_workers}" if options.most_workers else ""
    on = " on Ray" if options.on_ray else ""
    yield f"{options.model}{called}: {count} x {version}{on}{elsewhere}"
    for worker in model.workers:
        place = f"GPU {','.join(worker.gpus)}" if worker.gpus else f"CPU {','.join(map(str, worker.cores))}"
        yield f"  {worker.name}  {worker.address}  {place}"
    for upstream in model.upstreams:
        yield f"  {upstream.name}  http://{upstream.address}"


def plan_json(rendered: Rendered) -> str:
    """Give the plan for programs: what stack.json holds, and the notes."""
    layout = rendered.plan.layout
    stack = next(file for file in rendered.files if file.path == layout.stack_json)
    return json.dumps({**json.loads(stack.text), "out": str(layout.out), "notes": rendered.notes}, indent=2)
