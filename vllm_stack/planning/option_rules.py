"""What options cannot mean together, whatever the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllm_stack.errors import UsageError, about
from vllm_stack.options import Options
from vllm_stack.vllm_arguments import values_of


def check_options(models: Sequence[Options]) -> None:
    """Raise `UsageError` for options of a stack's models that contradict each other."""
    own = {models[0].port: "--port", models[0].admin_port: "--admin-port"}
    if models[0].ray_host == "":
        raise UsageError("--ray-host is empty: name the address of this box, or leave it out")
    for one in models:
        own |= dict.fromkeys(one.worker_ports, "--base-port")
    for one in models:
        with about(one.model if len(models) > 1 else ""):
            _check_target(one)
            _check_upstreams(one, own)
            _check_aliases(one)
    _check_delays(models[0])


def _check_target(options: Options) -> None:
    """Refuse what only Ray has without it, and what it has not with it."""
    if not options.on_ray:
        for name, said in (
            ("--workers MIN:MAX", options.most_workers),
            ("--pipeline-parallel-size", options.pipeline_parallel_size > 1),
            ("--ray-host", options.ray_host is not None),
        ):
            if said:
                raise UsageError(f"{name} is for Ray: add --target ray, or leave it out")
        return
    if not options.workers:
        raise UsageError("--workers 0 leaves Ray nothing to run: leave --target ray out")
    if options.upstreams:
        raise UsageError(
            "--upstream and --target ray exclude each other: a stack with --workers 0 can stand before both, "
            "with the door of this one as one of its upstreams"
        )
    if options.worker_transport == "unix":
        raise UsageError("--worker-transport unix has no counterpart on Ray: leave it out")


def _check_upstreams(options: Options, own: Mapping[int, str]) -> None:
    """Refuse a stack that would send to nobody, or to itself."""
    if not options.workers and not options.upstreams:
        raise UsageError(
            "--workers 0 leaves nobody to send to: name at least one --upstream http://host:port"
        )
    for address in options.upstreams:
        if address.is_loopback and address.port in own:
            raise UsageError(
                f"--upstream http://{address} is this stack itself ({own[address.port]} {address.port}): "
                "leave it out, or name another box"
            )


def _check_aliases(options: Options) -> None:
    if options.aliases and values_of(options.vllm_args, "--served-model-name"):
        raise UsageError(
            f"aliases and --served-model-name both name {options.model}: put all names into one of them"
        )


def _check_delays(options: Options) -> None:
    if 0 < options.restart_delay_max < options.restart_delay:
        raise UsageError(
            f"--restart-delay-max {options.restart_delay_max:g} is shorter than --restart-delay "
            f"{options.restart_delay:g}: make it longer, or leave it out for a constant delay"
        )
