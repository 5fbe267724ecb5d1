"""A box that joins a Ray cluster: the plan of a stack whose only program is its part of it."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_stack.address import LOOPBACK, TcpAddress
from vllm_stack.inventory import Inventory
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.planning.on_ray import RayPlan, node_environment
from vllm_stack.planning.placement import usable_gpus
from vllm_stack.planning.plan import Plan, head_plan
from vllm_stack.planning.timings import Timings
from vllm_stack.ray.node import Node


@dataclass(frozen=True, slots=True)
class Membership:
    """Whom this box joins, and where its own agent says whether it is well."""

    head: TcpAddress
    agent_port: int


def member_plan(options: Options, membership: Membership, inventory: Inventory) -> Plan:
    """Decide what this box gives; raises `StackError` where its GPUs, or Ray, are not there."""
    layout = Layout.at(options.out)
    timings = Timings(options.restart_delay, options.drain_timeout)
    gpus = () if options.on_cpu else usable_gpus(options, inventory)
    node = Node(
        program=str(inventory.found_ray().program),
        host=options.ray_host,
        joins=str(membership.head),
        port=membership.head.port,
        dashboard_port=0,
        agent_port=membership.agent_port,
        cpus=len(inventory.machine.cores),
        gpus=len(gpus),
        temp=layout.ray_temp,
        token=layout.ray_token,
        drain_timeout=options.drain_timeout,
    )
    env = node_environment(layout.ray_token, options.drain_timeout, inventory.gloo_interface)
    ray = RayPlan(node, None, gpus, env)
    return Plan(
        layout=layout,
        options=options,
        timings=timings,
        models=(),
        host=LOOPBACK,
        proxy_processes=0,
        python=inventory.python,
        root=inventory.root,
        vllm_version=inventory.found_vllm().version,
        notes=(),
        vendor=inventory.gpus.vendor,
        service=inventory.service,
        ray=ray,
        head=head_plan(ray, TcpAddress(LOOPBACK, membership.agent_port), inventory, layout),
    )
