"""The Ray that runs the workers, where it does, and what it makes of the options."""

from __future__ import annotations

from vllm_stack.checks.finding import Finding, ok, refused, warning
from vllm_stack.errors import RayError, StackError, UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.options import Options
from vllm_stack.ray.installed import judge_versions
from vllm_stack.vllm_command import VllmCommand


def ray(options: Options, inventory: Inventory) -> Finding | None:
    """There is a Ray beside vLLM, with all that it needs to serve, and this box is where it is to be."""
    if not options.on_ray or not isinstance(inventory.vllm, VllmCommand):
        return None
    try:
        found = inventory.found_ray()
    except StackError as error:
        return refused("not installed", error)
    if found.missing:
        return refused(
            found.version or "of unknown version",
            RayError(
                f"Ray {found.version} lacks {', '.join(found.missing)}, without which it serves no model: "
                "pip install 'vllm-stack[ray]' into the environment of vLLM"
            ),
        )
    if options.ray_host is not None and inventory.gloo_interface is None:
        return refused(
            options.ray_host,
            UsageError(f"--ray-host {options.ray_host} is no address of this box: `ip address` lists them"),
        )
    return ok(f"{found.version} ({found.program})")


def ray_version(options: Options, inventory: Inventory) -> Finding | None:
    """This Ray and this vLLM go together."""
    if not options.on_ray or not isinstance(inventory.vllm, VllmCommand):
        return None
    try:
        found = inventory.found_ray()
    except StackError:
        return None
    verdict, sentence = judge_versions(found, inventory.vllm.version)
    value = f"Ray {found.version}, vLLM {inventory.vllm.version}"
    if verdict == "refused":
        return refused(value, RayError(sentence))
    return ok(value) if verdict == "ok" else warning(value, sentence)


def ray_options(options: Options, inventory: Inventory) -> Finding | None:
    """What follows `--` means something to the engine, which Ray runs without vLLM's own server."""
    if not options.on_ray or not options.vllm_args or inventory.engine_kwargs is None:
        return None
    value = " ".join(options.vllm_args)
    try:
        kwargs = inventory.found_engine_kwargs()
    except StackError as error:
        return refused(value, error)
    if not kwargs.without_counterpart:
        return ok(value)
    names = ", ".join(kwargs.without_counterpart)
    return refused(
        value,
        UsageError(
            f"After `--`, {names}: no counterpart on Ray, which runs vLLM's engine without its server; "
            "leave it out"
        ),
    )
