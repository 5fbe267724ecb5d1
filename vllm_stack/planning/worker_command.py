"""What a worker is started with: its command line, its environment, and where it listens."""

from __future__ import annotations

import math
import os.path

from vllm_stack.address import LOOPBACK, Address, TcpAddress, UnixAddress
from vllm_stack.layout import Layout
from vllm_stack.options import Options
from vllm_stack.planning.cpu_share import cpu_arguments, cpu_environment
from vllm_stack.planning.timings import Timings


def worker_addresses(options: Options, layout: Layout) -> list[Address]:
    """Give each worker its place to listen: a port on loopback, or a socket in a directory of ours."""
    if options.worker_transport == "unix":
        sockets = (layout.worker_socket(f"worker-{index}") for index in options.worker_indices)
        return [UnixAddress(str(path)) for path in sockets]
    return [TcpAddress(LOOPBACK, port) for port in options.worker_ports]


def _listening(address: Address) -> list[str]:
    """Give vLLM's options for where it listens; with `--uds` it knows no port at all."""
    if isinstance(address, UnixAddress):
        return ["--uds", address.path]
    return ["--host", address.host, "--port", str(address.port)]


def serve_argv(
    vllm: tuple[str, ...],
    model: str,
    options: Options,
    timings: Timings,
    address: Address,
    memory_total: int,
    args: tuple[str, ...],
) -> tuple[str, ...]:
    """Give the command line of one `vllm serve`; what the user passed on comes last, so that it wins.

    `vllm` are the words before `serve`, `memory_total` is that of the machine in bytes.
    """
    argv = [*vllm, "serve", model, *_listening(address)]
    argv += ["--tensor-parallel-size", str(options.tensor_parallel_size)]
    if options.revision:
        argv += ["--revision", options.revision]
    if options.aliases:
        argv += ["--served-model-name", model, *options.aliases]
    # 0 would abort what is in flight at the first TERM; the engine drains instead.
    argv += ["--shutdown-timeout", str(math.ceil(timings.drain_timeout))]
    # /load is the only honest count of requests in flight when an engine hangs. Access logs go
    # through supervisord's one reader thread: a slow disk there would stall the server.
    argv += ["--enable-server-load-tracking", "--disable-uvicorn-access-log"]
    if options.on_cpu:
        argv += cpu_arguments(options.all_workers, memory_total, args)
    return (*argv, *args)


def serve_environment(
    options: Options,
    timings: Timings,
    layout: Layout,
    name: str,
    cores: tuple[int, ...],
) -> dict[str, str]:
    """Give what is added to the environment of one `vllm serve`; `cores` are those of a CPU worker."""
    env = {
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(timings.worker_keep_alive),
        "VLLM_PROCESS_NAME_PREFIX": layout.process_title(name),
    }
    # vLLM's sockets lie in the worker's own directory instead of /tmp, where stopped engines leave
    # them; a socket's path holds 107 bytes, of which vLLM's names take 37.
    box = str(layout.box(name))
    if len(box) <= 70:
        env["VLLM_RPC_BASE_PATH"] = box
        # Whatever else a killed server leaves among temporary files, the next start removes with it.
        env["TMPDIR"] = os.path.join(box, "tmp")
    if cores:
        env |= cpu_environment(cores, options.tensor_parallel_size)
    return env
