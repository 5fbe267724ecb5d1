"""How N workers share a box without a GPU: cores, memory and vLLM's CPU settings."""

from __future__ import annotations

from vllm_stack.passthrough import has_option
from vllm_stack.sizes import GIB, MIB


def split_cores(cores: tuple[int, ...], workers: int) -> list[tuple[int, ...]]:
    """Give each worker its own cores, as evenly as they go; with too few cores they share."""
    if not workers:
        return []
    if workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    size, extra = divmod(len(cores), workers)
    slices, start = [], 0
    for index in range(workers):
        end = start + size + (1 if index < extra else 0)
        slices.append(cores[start:end])
        start = end
    return slices


def cpu_arguments(workers: int, memory_total: int, args: tuple[str, ...]) -> list[str]:
    """Give the options a worker needs on a CPU, unless the user set them.

    Without a size for its KV cache each engine takes 0.92 of the memory of its NUMA node, and a
    second one does not start (`v1/worker/cpu_worker.py`): a quarter of the memory is divided among
    them, at most 1 GiB each. Compiling takes minutes instead of seconds and gains nothing on a few
    cores; compiled bfloat16 answered nonsense on an AVX2 machine.
    """
    arguments: list[str] = []
    if not any(has_option(args, name) for name in ("--kv-cache-memory-bytes", "--gpu-memory-utilization")):
        arguments += ["--kv-cache-memory-bytes", f"{kv_cache_bytes(workers, memory_total) // MIB}M"]
    if not any(has_option(args, name) for name in ("--enforce-eager", "--no-enforce-eager")):
        arguments.append("--enforce-eager")
    return arguments


def kv_cache_bytes(workers: int, memory_total: int) -> int:
    """Give each worker's share of a quarter of the memory for its KV cache: 256 MiB to 1 GiB, whole MiB."""
    share = memory_total // 4 // workers // MIB * MIB
    return max(256 * MIB, min(GIB, share))


def cpu_environment(cores: tuple[int, ...], tensor_parallel_size: int) -> dict[str, str]:
    """Pin the threads to the worker's cores: left to itself, every engine takes the first ones.

    The ranks of a tensor-parallel worker are separated by `|`.
    """
    ranks = split_cores(cores, tensor_parallel_size)
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, rank)) for rank in ranks)}
