"""What options cannot mean together, whatever the machine."""

from __future__ import annotations

from vllm_stack.errors import UsageError
from vllm_stack.options import Options


def check_options(options: Options) -> None:
    """Raise `UsageError` for options that contradict each other."""
    _check_upstreams(options)
    _check_delays(options)


def _check_upstreams(options: Options) -> None:
    """Refuse a stack that would send to nobody, or to itself."""
    if not options.workers and not options.upstreams:
        raise UsageError(
            "--workers 0 leaves nobody to send to: name at least one --upstream http://host:port"
        )
    own = {options.port: "--port", options.admin_port: "--admin-port"}
    own |= dict.fromkeys(options.worker_ports, "--base-port")
    for address in options.upstreams:
        if address.is_loopback and address.port in own:
            raise UsageError(
                f"--upstream http://{address} is this stack itself ({own[address.port]} {address.port}): "
                "leave it out, or name another box"
            )


def _check_delays(options: Options) -> None:
    if 0 < options.restart_delay_max < options.restart_delay:
        raise UsageError(
            f"--restart-delay-max {options.restart_delay_max:g} is shorter than --restart-delay "
            f"{options.restart_delay:g}: make it longer, or leave it out for a constant delay"
        )
