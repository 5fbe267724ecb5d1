"""The ports that a stack holds because it runs: rendering over it must not be refused for them."""

from __future__ import annotations

import json

from vllm_stack.address import TcpAddress, parse_address
from vllm_stack.layout import Layout


def ports_of_running_stack(layout: Layout) -> frozenset[int]:
    """Give the ports that the stack in this directory holds now; none if it does not run."""
    if not layout.socket.exists():
        return frozenset()
    from vllm_stack.supervisor_rpc import Supervisor  # a tenth of a render's time, rarely needed

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
