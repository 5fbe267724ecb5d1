"""The ports that a stack holds because it runs: rendering over it must not be refused for them."""

from __future__ import annotations

import json
import os

from vllm_stack.address import TcpAddress, parse_address
from vllm_stack.layout import Layout
from vllm_stack.regular_file import MOST_SETTINGS, read_regular


def ports_of_running_stack(layout: Layout) -> frozenset[int]:
    """Give the ports that the stack in this directory holds now; none if it does not run."""
    if not os.path.exists(layout.socket):
        return frozenset()
    from vllm_stack.supervisor_rpc import Supervisor  # a tenth of a render's time, rarely needed

    if Supervisor(layout.socket).pid() is None:
        return frozenset()
    try:
        in_force = layout.stack_in_force() or layout.stack_json
        stack = json.loads(read_regular(in_force, MOST_SETTINGS))
        addresses = [parse_address(worker["address"]) for worker in stack["workers"]]
        ports = [address.port for address in addresses if isinstance(address, TcpAddress)]
        return frozenset((stack["door"]["port"], stack["admin_port"], *ports, *stack.get("ray_ports", ())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return frozenset()
