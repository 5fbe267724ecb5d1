"""All checks in the order in which a user should hear of them, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from vllm_stack.checks import gpu_checks, machine_checks, model_checks, vllm_checks
from vllm_stack.checks.finding import Finding
from vllm_stack.errors import UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.options import Options


@dataclass(frozen=True, slots=True)
class Check:
    """One check; it finds nothing (None) where it does not apply.

    Without what an `essential` one looks for there is nothing to render: it cannot be skipped. One that
    `needs_model` is not run if there is none.
    """

    look: Callable[[Options, Inventory], Finding | None]
    essential: bool = False
    needs_model: bool = False


CHECKS: Mapping[str, Check] = {
    "options": Check(machine_checks.options_agree, essential=True),
    "out": Check(machine_checks.out, essential=True),
    "model": Check(model_checks.model, essential=True),
    "hub": Check(model_checks.hub, needs_model=True),
    "heads": Check(model_checks.heads, needs_model=True),
    "context": Check(model_checks.context, needs_model=True),
    "driver": Check(gpu_checks.driver, essential=True),
    "gpus": Check(gpu_checks.gpus, essential=True),
    "gpu-health": Check(gpu_checks.gpu_health),
    "gpu-memory": Check(model_checks.gpu_memory, needs_model=True),
    "dtype": Check(model_checks.dtype, needs_model=True),
    "vllm": Check(vllm_checks.vllm, essential=True),
    "vllm-build": Check(vllm_checks.vllm_build),
    "vllm-options": Check(vllm_checks.vllm_options),
    "ports": Check(machine_checks.ports),
    "host-memory": Check(machine_checks.host_memory, needs_model=True),
    "shared-memory": Check(machine_checks.shared_memory),
    "open-files": Check(machine_checks.open_files),
    "disk": Check(machine_checks.disk, needs_model=True),
}
SKIPPABLE = tuple(name for name, check in CHECKS.items() if not check.essential)


def run_checks(options: Options, inventory: Inventory) -> dict[str, Finding]:
    """Give the finding of every check that applies, by its name."""
    findings = {}
    for name, check in CHECKS.items():
        if name in options.skip_checks:
            findings[name] = Finding("skipped", "")
        elif not check.needs_model or inventory.has_model:
            finding = check.look(options, inventory)
            if finding is not None:
                findings[name] = finding
    return findings


def refuse(findings: Mapping[str, Finding]) -> None:
    """Raise the error of the first check that refused."""
    for finding in findings.values():
        if finding.error is not None:
            raise finding.error


def advice(findings: Iterable[Finding]) -> tuple[str, ...]:
    """Give what the warnings say."""
    return tuple(finding.advice for finding in findings if finding.verdict == "warning")


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Take the values of --skip-check, each once; raises `UsageError` for one that cannot be skipped."""
    taken = tuple(dict.fromkeys(names))
    for name in taken:
        if name not in SKIPPABLE:
            what = "cannot be skipped" if name in CHECKS else "is no check"
            raise UsageError(f"--skip-check {name} {what}: use one of {', '.join(SKIPPABLE)}")
    return taken
