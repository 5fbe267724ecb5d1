"""`vllm-stack join`: give this box to the Ray cluster of another one."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from vllm_stack.address import LOOPBACK, TcpAddress
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.gpu_checks import driver
from vllm_stack.checks.machine_checks import out as check_out
from vllm_stack.checks.ray_checks import ray as check_ray
from vllm_stack.checks.ray_checks import ray_version as check_ray_version
from vllm_stack.checks.run import advice, refuse
from vllm_stack.checks.vllm_checks import vllm as check_vllm
from vllm_stack.checks.vllm_checks import vllm_build as check_vllm_build
from vllm_stack.errors import InsufficientGpus, PortError, RayError, StackError, UsageError
from vllm_stack.files import File, make_directories, write_files
from vllm_stack.inventory import Inventory, take_machine
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.planning.member import Membership, member_plan
from vllm_stack.planning.plan import Plan
from vllm_stack.ports import can_bind
from vllm_stack.regular_file import read_regular
from vllm_stack.render import render_member
from vllm_stack.supervisor_rpc import Supervisor

# The most (bytes) of a token, and the seconds that a cluster has to say whether it takes it.
_MOST_TOKEN = 4096
_PATIENCE = 30.0
_CONNECT = 5.0


@dataclass(frozen=True, slots=True)
class Joined:
    """A plan that was written, and what the user should know of it."""

    plan: Plan
    notes: tuple[str, ...]


def join_cluster(options: Options, membership: Membership, token_file: Path | None) -> Joined:
    """Check this box, its Ray and the cluster, and write what joins it; nothing is started.

    `token_file` holds what the cluster's boxes must know, "-" is the standard input; None takes the one that
    is here from before. Raises `StackError` with one sentence for whatever keeps the box from joining.
    """
    layout = Layout.at(options.out)
    if Supervisor(layout.socket).pid() is not None:
        raise StackError(f"The stack in {layout.out} runs already: `vllm-stack down` stops it")
    if options.ray_host is None:
        options = replace(options, ray_host=_own_address(membership.head))
    inventory = take_machine(options)
    findings = dict(_findings(options, inventory))
    refuse(findings)
    plan = member_plan(options, membership, inventory)
    if not (options.on_cpu or plan.workers[0].gpus):
        raise InsufficientGpus("No GPU may be used here: see CUDA_VISIBLE_DEVICES, or join with --device cpu")
    if not can_bind(LOOPBACK, membership.agent_port):
        raise PortError(
            f"Port {membership.agent_port}, wanted for Ray's agent, is in use: change --agent-port"
        )
    token = _read_token(token_file, plan.layout.ray_token)
    _check_cluster(plan, membership.head, token)
    make_directories((*plan.layout.directories, *(plan.layout.box(one.name) for one in plan.workers)))
    write_files([File(plan.layout.ray_token, token + "\n"), *render_member(plan)])
    return Joined(plan, advice(findings))


def _own_address(head: TcpAddress) -> str | None:
    """Give the address from which this box reaches the head, by which others reach it; None if it does not.

    Nothing is sent: a datagram socket that is connected only has an address.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(head.host, head.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(where)
            return str(probe.getsockname()[0])
    except (OSError, UnicodeError):
        return None


def _findings(options: Options, inventory: Inventory) -> Iterator[tuple[str, Finding]]:
    """Give what `check` would say of this box, as far as it concerns one that serves no clients."""
    for name, check in (
        ("out", check_out),
        ("driver", driver),
        ("vllm", check_vllm),
        ("vllm-build", check_vllm_build),
        ("ray", check_ray),
        ("ray-version", check_ray_version),
    ):
        finding = check(options, inventory)
        if finding is not None:
            yield name, finding


def _read_token(token_file: Path | None, kept: Path) -> str:
    """Read the token; raises `UsageError` where there is none."""
    if token_file is None and not kept.exists():
        raise UsageError(
            "Which token? --token-file names a copy of the head's out/secrets/ray-token; "
            "`-` reads it from the standard input"
        )
    try:
        if token_file is not None and str(token_file) == "-":
            text = sys.stdin.buffer.read(_MOST_TOKEN)
        else:
            text = read_regular(token_file or kept, _MOST_TOKEN)
        token = text.decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise UsageError(f"--token-file {token_file} cannot be read: {error}") from None
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError(f"--token-file {token_file} holds no token: copy the head's out/secrets/ray-token")
    return token


def _check_cluster(plan: Plan, head: TcpAddress, token: str) -> None:
    """Ask the cluster whether it is there, and takes our token, as a box that joins does."""
    assert plan.ray is not None  # noqa: S101 - it is a member's plan
    nobody = RayError(
        f"No Ray cluster answers at {head}: start its head first (`vllm-stack render MODEL --target ray "
        f"--ray-host {head.host}` there, then `vllm-stack up`), and let this box reach its ports"
    )
    try:
        socket.create_connection(head.sockaddr, timeout=_CONNECT).close()
    except (OSError, UnicodeError):
        raise nobody from None
    argv = [plan.ray.node.program, "health-check", "--address", str(head)]
    try:
        asked = subprocess.run(
            argv,
            env=_environment(token),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise nobody from None
    except OSError as error:
        raise RayError(f"{argv[0]} cannot be executed: {error}") from None
    if asked.returncode == 0:
        return
    said = (asked.stderr + asked.stdout).decode("utf-8", "replace")
    if "AuthenticationError" in said:
        raise RayError(
            f"The Ray cluster at {head} does not take the token: copy the head's out/secrets/ray-token anew"
        )
    raise nobody


def _environment(token: str) -> dict[str, str]:
    """Give the token itself: until the cluster takes it, there is no file of ours that holds it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")}
    return {**inherited, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
