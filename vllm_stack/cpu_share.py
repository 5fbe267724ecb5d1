"""How N workers share a box without a GPU: cores, memory and vLLM's CPU settings."""

from __future__ import annotations

from vllm_stack.passthrough import has_option

GIB = 1024**3


def split_cores(cores: tuple[int, ...], workers: int) -> list[tuple[int, ...]]:
    """Give each worker its own cores, as evenly as they go; with too few cores they share."""
    if workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    size, extra = divmod(len(cores), workers)
    slices, start = [], 0
    for index in range(workers):
        end = start + size + (1 if index < extra else 0)
        slices.append(cores[start:end])
        start = end
    return slices


def cpu_arguments(workers: int, args: tuple[str, ...]) -> list[str]:
    """Divide the memory: vLLM's share is of the whole node and each engine would take 0.92 of it."""
    if has_option(args, "--gpu-memory-utilization"):
        return []
    return ["--gpu-memory-utilization", f"{0.8 / workers:.3f}"]


def cpu_environment(cores: tuple[int, ...], memory_total: int, workers: int) -> dict[str, str]:
    """Pin the threads to the worker's cores and bound its KV cache (whole GiB, at least 1)."""
    kv_cache = max(1, min(8, memory_total // GIB // (6 * workers)))
    return {
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }
