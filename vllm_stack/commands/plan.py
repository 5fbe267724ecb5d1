"""`vllm-stack plan`: the stack that would be rendered, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from vllm_stack.checks.run import row_name
from vllm_stack.commands.render import Rendered
from vllm_stack.gpus.box import Gpu, GpuBox
from vllm_stack.gpus.mask import find
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import Demand
from vllm_stack.model.estimate import estimate, room_for
from vllm_stack.model.fit import Fit
from vllm_stack.planning.demand import demand_of
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.plan import ModelPlan, Plan, WorkerPlan
from vllm_stack.ranges import ranges
from vllm_stack.reasons import WHY
from vllm_stack.sizes import gib

_BAR = 40
# A letter of the bar for each term of the estimate, in its order.
_LETTERS = {"weights": "#", "KV cache": "=", "the rest": "-"}
_WAYS = {"NVLINK": "NV", None: "?"}


def explain(rendered: Rendered) -> Iterator[str]:
    """Give the lines: the model, the GPUs and how they are joined, each worker, and every derived setting."""
    examined, plan = rendered.examined, rendered.plan
    findings = examined.findings
    several = len(plan.models) > 1
    for model in plan.models:
        yield f"Model    {findings[row_name('model', model.names[0] if several else '')].value}"
        if several or len(model.names) > 1:
            yield f"           clients say {', '.join(model.names)}"
    if "vllm" in findings:
        yield f"vLLM     {findings['vllm'].value or plan.vllm_version or 'of unknown version'}"
    yield f"Door     {plan.options.scheme}://{plan.door_address}/v1, {plan.options.policy} routing"
    box = examined.deployments[0].inventory.gpus
    if box.gpus:
        yield ""
        yield from _gpus(box, plan.workers)
    for deployment, model in zip(examined.deployments, plan.models, strict=True):
        yield ""
        yield from _workers(deployment, model, several)
    yield ""
    yield "Settings, and why"
    yield from (f"  {line}" for line in _settings(plan))
    if rendered.notes:
        yield ""
        yield from (f"Note: {note}." for note in rendered.notes)


def _gpus(box: GpuBox, workers: Sequence[WorkerPlan]) -> Iterator[str]:
    """List the GPUs with who gets them, and draw how they are joined where there is more than one."""
    owners = _owners(box, workers)
    yield f"GPUs     NVIDIA {box.driver or 'driver'}" + (
        f", CUDA {'.'.join(map(str, box.cuda))}" if box.cuda else ""
    )
    for gpu in box.gpus:
        node = "" if gpu.numa_node is None else f"  NUMA {gpu.numa_node}"
        used = "" if gpu.trouble else f"  {gib(gpu.memory_free)} of {gib(gpu.memory_total)} free{node}"
        owner = gpu.trouble or ", ".join(owners.get(gpu.index, ())) or _stranger(gpu)
        yield f"  {gpu.index:>3}  {gpu.name}{used}  {owner}"
    if len(box.gpus) > 1 and box.links:
        yield from (f"       {line}" for line in _matrix(box))


def _stranger(gpu: Gpu) -> str:
    """Say who else computes on a GPU that no worker gets."""
    for process in gpu.processes:
        if process.computes:
            return f"in use by pid {process.pid} (user {process.user or 'unknown'})"
    return "not used"


def _owners(box: GpuBox, workers: Sequence[WorkerPlan]) -> Mapping[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for worker in workers:
        for token in worker.gpus:
            named = find(token, box)
            if named is not None:
                owners.setdefault(named.gpu.index, []).append(worker.name)
    return owners


def _matrix(box: GpuBox) -> Iterator[str]:
    """Draw the topology as `nvidia-smi topo -m` does: NV is NVLink, SYS the way between two sockets."""
    indices = [gpu.index for gpu in box.gpus]
    yield "".join(["    ", *(f"{index:>5}" for index in indices)])
    for row in indices:
        ways = [None if row == column else box.way(row, column) for column in indices]
        cells = [
            "." if row == column else _WAYS.get(way, str(way))
            for column, way in zip(indices, ways, strict=True)
        ]
        yield "".join([f"{row:>4}", *(f"{cell:>5}" for cell in cells)])


def _workers(deployment: Deployment, model: ModelPlan, several: bool) -> Iterator[str]:
    asked = _asked(deployment, model)
    fit = estimate(*asked) if asked else None
    size = model.options.tensor_parallel_size
    each = "" if model.options.on_cpu or not model.workers else f", {size} GPU{'s' * (size > 1)} each"
    what = f" of {model.names[0]}" if several else ""
    yield f"Workers  {len(model.workers)}{what}{each}"
    for worker in model.workers:
        place = f"GPU {','.join(worker.gpus)}" if worker.gpus else ""
        cores = f"cores {ranges(worker.cores)}" if worker.cores else "all cores"
        yield f"  {worker.name}  {worker.address}  {'  '.join(part for part in (place, cores) if part)}"
        if fit is not None:
            yield f"            [{_bar(fit)}] {gib(fit.total)} of {gib(fit.budget)} a GPU"
    if asked and fit:
        yield from (f"  {line}" for line in _legend(fit, room_for(*asked)))
    for upstream in model.upstreams:
        yield f"  {upstream.name}  http://{upstream.address}"


def _asked(deployment: Deployment, model: ModelPlan) -> tuple[ModelConfig, Demand] | None:
    """Give the model, and what is asked of the smallest GPU; None where either is not known."""
    config = deployment.inventory.found_model().config
    memories = [worker.memory for worker in model.workers if worker.memory]
    if config is None or not memories:
        return None
    return config, demand_of(model.options, min(memories))


def _bar(fit: Fit) -> str:
    """Draw the budget of one GPU, filled with the terms of the estimate."""
    filled = "".join(
        _LETTERS.get(term.name, "?") * round(term.bytes * _BAR / max(fit.budget, 1)) for term in fit.terms
    )
    return filled[:_BAR].ljust(_BAR, ".")


def _legend(fit: Fit, tokens: int | None) -> Iterator[str]:
    for term in fit.terms:
        if term.bytes:
            yield f"{_LETTERS.get(term.name, '?')} {gib(term.bytes)} for {term.how}"
    yield f"  The budget is {fit.budget_how}."
    if tokens:
        yield f"  What is left holds the KV cache of some {tokens:,} tokens a worker, all requests together."


def _settings(plan: Plan) -> Iterator[str]:
    """Give every setting that was derived, with the reason that the rendered files carry."""
    timings, options = plan.timings, plan.options
    values: dict[str, object] = {
        "proxy_processes": plan.proxy_processes,
        "start_stagger": options.start_stagger,
        "restart_delay": options.restart_delay,
        "start_timeout": options.start_timeout,
        "wedge_timeout": options.wedge_timeout,
        "gpu_patience": timings.gpu_patience,
        "stop_grace": timings.stop_grace,
        "worker_stop_wait": timings.worker_stop_wait,
        "proxy_stop_wait": timings.proxy_stop_wait,
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": timings.worker_keep_alive,
    }
    if plan.service is not None:
        values["unit_stop_wait"] = timings.unit_stop_wait
    width = max(map(len, values))
    for name, value in values.items():
        yield f"{name.ljust(width)}  {value!s:>6}  {WHY[name]}"
