"""The vLLM that the workers run, and what is passed on to it."""

from __future__ import annotations

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.errors import StackError, UsageError, VllmCommandError
from vllm_stack.inventory import Inventory
from vllm_stack.options import Options
from vllm_stack.passthrough import accept
from vllm_stack.vllm_options.unknown import refusal, unknown_options


def vllm(options: Options, inventory: Inventory) -> Finding | None:
    """There is a vLLM."""
    if not options.workers:
        return None
    found = inventory.vllm
    if isinstance(found, VllmCommandError):
        return refused(options.vllm_command, found)
    program = " ".join(found.argv)
    if found.version is None:
        return warning(program, f"The version of {program} could not be read: its build is taken on trust")
    return ok(f"{found.version} ({program})")


def vllm_build(options: Options, inventory: Inventory) -> Finding | None:
    """It is built for what it will run on (vllm/platforms/__init__.py goes by its version)."""
    found = inventory.vllm
    if not options.workers or isinstance(found, VllmCommandError) or found.version is None:
        return None
    value = "for CPUs" if "cpu" in found.version else "for GPUs"
    if ("cpu" in found.version) is options.on_cpu:
        return ok(value)
    if options.on_cpu:
        return refused(
            value,
            VllmCommandError(
                f"vLLM {found.version} is no CPU build, and would look for GPUs: install one beside it "
                "(docs/vllm-cpu) and name it with --vllm-command, or leave --device cpu out"
            ),
        )
    return refused(
        value,
        VllmCommandError(
            f"vLLM {found.version} is a CPU build: use --device cpu, or install the build for GPUs "
            "(pip install 'vllm-stack[vllm]')"
        ),
    )


def vllm_options(options: Options, inventory: Inventory) -> Finding | None:
    """What follows `--` is what this vLLM knows, and nothing that vllm-stack sets itself."""
    if not options.vllm_args or not options.workers:
        return None
    value = " ".join(options.vllm_args)
    try:
        args = accept(options.vllm_args)
    except StackError as error:
        return refused(value, error)
    if inventory.vllm_options is None:
        return ok(f"{value} (not checked: vLLM does not tell its options)")
    unknown = unknown_options(args, inventory.vllm_options)
    if not unknown:
        return ok(value)
    version = None if isinstance(inventory.vllm, VllmCommandError) else inventory.vllm.version
    return refused(value, UsageError(refusal(unknown, version)))
