"""All checks in the order in which a user should hear of them, and running them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vllm_stack.checks import gpu_checks, machine_checks, model_checks, ray_checks, vllm_checks
from vllm_stack.checks.finding import Finding
from vllm_stack.errors import UsageError, about
from vllm_stack.inventory import Inventory
from vllm_stack.options import Options
from vllm_stack.planning.deployment import Deployment

_Look = Callable[[Sequence[Deployment]], Iterator[tuple[str, Finding | None]]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check; it finds nothing (None) where it does not apply.

    `look` gives findings, each with the model it is about, or "" for the stack. Without what an `essential`
    one looks for there is nothing to render: it cannot be skipped. One that `needs_model` is not told of
    models that were not found.
    """

    look: _Look
    essential: bool = False
    needs_model: bool = False


def _each(look: Callable[[Options, Inventory], Finding | None]) -> _Look:
    """Look at every model by itself."""
    return lambda deployments: ((one.name, look(one.options, one.inventory)) for one in deployments)


def _once(look: Callable[[Options, Inventory], Finding | None]) -> _Look:
    """Look at what all models share, with the one that needs most of it."""

    def with_one(deployments: Sequence[Deployment]) -> Iterator[tuple[str, Finding | None]]:
        # Workers here, and GPUs that the driver has to tell.
        one = max(deployments, key=lambda one: (one.options.workers > 0, one.options.gpus is None))
        yield "", look(one.options, one.inventory)

    return with_one


def _whole(look: Callable[[Sequence[Deployment]], Finding | None]) -> _Look:
    """Look at what all models take together."""
    return lambda deployments: iter([("", look(deployments))])


CHECKS: Mapping[str, Check] = {
    "options": Check(_whole(machine_checks.options_agree), essential=True),
    "out": Check(_once(machine_checks.out), essential=True),
    "model": Check(_each(model_checks.model), essential=True),
    "hub": Check(_each(model_checks.hub), needs_model=True),
    "heads": Check(_each(model_checks.heads), needs_model=True),
    "context": Check(_each(model_checks.context), needs_model=True),
    "driver": Check(_once(gpu_checks.driver), essential=True),
    "gpus": Check(_each(gpu_checks.gpus), essential=True),
    "gpu-sharing": Check(_whole(gpu_checks.gpu_sharing)),
    "gpu-health": Check(_once(gpu_checks.gpu_health)),
    "gpu-memory": Check(_each(model_checks.gpu_memory), needs_model=True),
    "dtype": Check(_each(model_checks.dtype), needs_model=True),
    "vllm": Check(_once(vllm_checks.vllm), essential=True),
    "vllm-build": Check(_once(vllm_checks.vllm_build)),
    "vllm-options": Check(_each(vllm_checks.vllm_options)),
    "ray": Check(_once(ray_checks.ray), essential=True),
    "ray-version": Check(_once(ray_checks.ray_version)),
    "ray-options": Check(_each(ray_checks.ray_options), essential=True),
    "ports": Check(_whole(machine_checks.ports)),
    "host-memory": Check(_whole(machine_checks.host_memory), needs_model=True),
    "shared-memory": Check(_whole(machine_checks.shared_memory)),
    "open-files": Check(_once(machine_checks.open_files)),
    "disk": Check(_whole(machine_checks.disk), needs_model=True),
}
SKIPPABLE = tuple(name for name, check in CHECKS.items() if not check.essential)


def run_checks(deployments: Sequence[Deployment]) -> dict[str, Finding]:
    """Give the finding of every check that applies, by its name; with several models, by name and model."""
    findings = {}
    several = len(deployments) > 1
    for name, check in CHECKS.items():
        if name in deployments[0].options.skip_checks:
            findings[name] = Finding("skipped", "")
            continue
        told = [one for one in deployments if one.inventory.has_model or not check.needs_model]
        for model, finding in check.look(told) if told else ():
            if finding is not None:
                findings[row_name(name, model if several else "")] = finding
    return findings


def row_name(check: str, model: str = "") -> str:
    """Give the name of a row about one of several models, or about the stack."""
    return f"{check} {model}".rstrip()


def model_in(row: str) -> str:
    """Give the model that a row is about, "" for one about the stack."""
    return row.partition(" ")[2]


def refuse(findings: Mapping[str, Finding]) -> None:
    """Raise the error of the first check that refused, naming its model where there are several."""
    for row, finding in findings.items():
        if finding.error is not None:
            with about(model_in(row)):
                raise finding.error


def advice(findings: Mapping[str, Finding]) -> tuple[str, ...]:
    """Give what the warnings say, naming the model where there are several."""
    warnings = (
        (model_in(row), found.advice) for row, found in findings.items() if found.verdict == "warning"
    )
    said = (advice if advice.startswith(model) else f"{model}: {advice}" for model, advice in warnings)
    return tuple(dict.fromkeys(said))


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """Take the values of --skip-check, each once; raises `UsageError` for one that cannot be skipped."""
    taken = tuple(dict.fromkeys(names))
    for name in taken:
        if name not in SKIPPABLE:
            what = "cannot be skipped" if name in CHECKS else "is no check"
            raise UsageError(f"--skip-check {name} {what}: use one of {', '.join(SKIPPABLE)}")
    return taken
