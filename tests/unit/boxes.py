"""Machines and options for tests: an inventory without a machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vllm_stack import cli
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import run_checks
from vllm_stack.commands import render as rendering
from vllm_stack.errors import StackError
from vllm_stack.gpus.box import Gpu, GpuBox
from vllm_stack.inventory import Inventory
from vllm_stack.machine import Machine
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.plan import Plan, make_plan
from vllm_stack.ray.engine_kwargs import EngineKwargs
from vllm_stack.ray.installed import Ray
from vllm_stack.vllm_command import VllmCommand

GIB = 1024**3


def gpu_box(count: int) -> GpuBox:
    return GpuBox(
        tuple(Gpu(i, f"GPU-{i}{i}{i}{i}aaaa-0000", "NVIDIA H100", 80 * GIB, 80 * GIB) for i in range(count))
    )


def amd_box(count: int) -> GpuBox:
    uuids = (f"GPU-{number:x}bad0000cafe0000" for number in range(count))
    gpus = (Gpu(i, uuid, "AMD Instinct MI300X", 192 * GIB, 192 * GIB) for i, uuid in enumerate(uuids))
    return GpuBox(tuple(gpus), driver="6.14.14", vendor="amd")


def machine(**changes: Any) -> Machine:
    return Machine(**{"cores": (0, 1, 2, 3), "memory_total": 64 * GIB, **changes})


def inventory(**changes: Any) -> Inventory:
    mask = changes.pop("gpu_mask", None)
    facts: dict[str, Any] = {
        "model": Model("org/model", "cache", ModelConfig(attention_heads=32, kv_heads=8)),
        "vllm": VllmCommand(("/opt/vllm/bin/vllm",), "0.32.0"),
        "vllm_options": None,
        "ports": None,
        "out": None,
        "gpus": gpu_box(4),
        "gpu_masks": {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask},
        "machine": machine(),
        "python": Path("/opt/stack/bin/python"),
        "root": False,
    }
    return Inventory(**{**facts, **changes})


def ray_inventory(**changes: Any) -> Inventory:
    """Give a machine with a Ray beside its vLLM, which nobody was told anything to pass on to."""
    ray = Ray("2.60.0", Path("/opt/vllm/bin/ray"))
    return inventory(**{"ray": ray, "engine_kwargs": EngineKwargs(), **changes})


def options(**changes: Any) -> Options:
    return Options(**{"model": "org/model", "out": Path("/srv/stack"), "workers": 2, **changes})


def typed(*words: str) -> tuple[Options, ...]:
    """Give the options that `render` makes of a command line."""
    taken: list[Options] = []

    def take(models: Sequence[Options], dry_run: bool) -> None:
        taken.extend(models)
        raise StackError("that is enough")

    with patch.object(rendering, "render_stack", take):
        assert cli.run(["render", *words]) == 1
    return tuple(taken)


def plan_for(options: Options, inventory: Inventory) -> Plan:
    """Plan a stack of one model."""
    return make_plan([Deployment(options, inventory)])


def findings_for(options: Options, inventory: Inventory) -> dict[str, Finding]:
    """Check a stack of one model."""
    return run_checks([Deployment(options, inventory)])
