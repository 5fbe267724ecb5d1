"""The memory of a worker's GPUs before vLLM starts: how much is free, who holds the rest, is it enough.

vLLM looks once, when its engine starts, and ends if less is free than it asks for. Memory of a
process that was killed comes back seconds later, and other programs come and go, so the wrapper
looks first. The driver is asked by a process of its own (`gpu_reader`): a broken driver can hang
its caller for ever, or kill it, and neither may happen to the wrapper.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_stack.errors import GpuMemoryUnknown
from vllm_stack.worker.failure import describe_end

# vllm/config/cache.py, vLLM 0.32.
DEFAULT_SHARE = 0.92
# Both are one option (vllm/engine/arg_utils.py).
_SHARE_OPTIONS = ("--gpu-memory-utilization", "--device-memory-utilization")
# One key of the file that vLLM's --config names, which is flat YAML.
_SHARE_KEY = re.compile(
    r"""^(["']?)(?:gpu|device)[-_]memory[-_]utilization\1\s*:\s*["']?([^\s"'#]+)""", re.MULTILINE
)
_GIB = 1024**3
# How many of a GPU's holders one line names.
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a GPU; `bytes` is None where the driver does not tell."""

    pid: int
    bytes: int | None
    who: str


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """The memory of one GPU or MIG device, in bytes.

    `total` is what programs can have: what the driver keeps for itself is not counted, as in
    CUDA's own figures. `token` is its word in CUDA_VISIBLE_DEVICES.
    """

    token: str
    name: str
    total: int
    free: int
    holders: tuple[Holder, ...] = ()


def read_slice(tokens: Sequence[str], timeout: float = 20.0) -> tuple[GpuMemory, ...]:
    """Read the memory of the GPUs that CUDA_VISIBLE_DEVICES names by `tokens`, in their order.

    Takes about 0.2 s, and `timeout` seconds at most. Raises `GpuMemoryUnknown` if any of them
    cannot be read: then nobody can say what vLLM will find, and vLLM itself should.
    """
    if not tokens:
        return ()
    answer = _answer(_ask_reader(tokens, timeout))
    if "trouble" in answer:
        raise GpuMemoryUnknown(answer["trouble"])
    return tuple(
        GpuMemory(**{**gpu, "holders": tuple(Holder(**holder) for holder in gpu["holders"])})
        for gpu in answer["gpus"]
    )


def _ask_reader(tokens: Sequence[str], timeout: float) -> bytes:
    argv = [sys.executable, "-P", "-m", "vllm_stack.worker.gpu_reader", *tokens]
    try:
        reader = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except OSError as error:
        raise GpuMemoryUnknown(f"the GPUs cannot be asked for their memory: {error}") from error
    try:
        told, complaint = reader.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        _abandon(reader)
        raise GpuMemoryUnknown(f"the NVIDIA driver has not answered for {timeout:g} s") from error
    if reader.returncode != 0:
        last_words = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        how = describe_end(reader.returncode)
        raise GpuMemoryUnknown(
            f"the program that asks the NVIDIA driver {how}" + (f": {last_words}" if last_words else "")
        )
    return told


def _abandon(reader: subprocess.Popen[bytes]) -> None:
    """Kill the reader, but do not wait for one that the driver holds in the kernel."""
    reader.kill()
    for pipe in (reader.stdout, reader.stderr):
        if pipe is not None:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        reader.wait(1)


def _answer(told: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(told))
    except ValueError as error:
        raise GpuMemoryUnknown(f"the program that asks the NVIDIA driver said {told[:80]!r}") from error


def needed_share(argv: Sequence[str]) -> float:
    """Give the share of each GPU that must be free when vLLM starts, by its command line.

    The check (`request_memory` in vllm/v1/worker/utils.py) goes by --gpu-memory-utilization alone:
    --kv-cache-memory-bytes sizes the cache later and changes nothing in it. A value that vLLM
    refuses gives 0: nothing is worth waiting for, so that vLLM says so.
    """
    given = None
    for option, value in _options(argv):
        if _names_share(option):
            given = value
    if given is None:
        given = _share_in_config(argv)
    if given is None:
        return DEFAULT_SHARE
    try:
        share = float(given)
    except ValueError:
        return 0.0
    return share if 0 < share <= 1 else 0.0


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give each `--option value` and `--option=value`, its name in dashes as vLLM's parser spells it."""
    for index, word in enumerate(argv):
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            following = "".join(argv[index + 1 : index + 2])
            yield option.replace("_", "-"), value if equals else following


def _names_share(option: str) -> bool:
    """vLLM's parser takes any beginning of a name, and refuses one that several names begin with."""
    return len(option) > len("--") and any(name.startswith(option) for name in _SHARE_OPTIONS)


def _share_in_config(argv: Sequence[str]) -> str | None:
    """Look into the file of `--config`, for which vLLM knows this one spelling."""
    for word, path in itertools.pairwise(argv):
        if word == "--config":
            with contextlib.suppress(OSError, ValueError):
                found = _SHARE_KEY.findall(Path(path).read_text("utf-8"))
                return found[-1][1] if found else None
    return None


def occupied(gpus: Sequence[GpuMemory], share: float) -> tuple[GpuMemory, ...]:
    """Give those GPUs that have less free memory than vLLM will ask for.

    vLLM compares the same figures, a little later: its own CUDA context (0.5 GiB, more with NCCL)
    then counts as in use. A GPU that passes here by less than that is still refused by vLLM.
    """
    return tuple(gpu for gpu in gpus if gpu.free < _asked(gpu, share))


def _asked(gpu: GpuMemory, share: float) -> int:
    return math.ceil(gpu.total * share)


def describe(gpu: GpuMemory, share: float) -> str:
    """Say in one line how much is free, how much vLLM asks for, and who holds the rest."""
    return (
        f"{label(gpu.token)} ({gpu.name}) has {_gib(gpu.free)} of {_gib(gpu.total)} GiB free, "
        f"vLLM asks for {_gib(_asked(gpu, share))}; {_describe_holders(gpu.holders)}"
    )


def label(token: str) -> str:
    """Name a GPU by its word in CUDA_VISIBLE_DEVICES."""
    return token if token.startswith(("GPU-", "MIG-")) else f"GPU {token}"


def _describe_holders(holders: Sequence[Holder]) -> str:
    if not holders:
        return "the driver names no process that holds it"
    largest = sorted(holders, key=lambda holder: -(holder.bytes or 0))
    named = [_describe_holder(holder) for holder in largest[:_NAMED]]
    rest = len(holders) - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest else "")


def _describe_holder(holder: Holder) -> str:
    amount = "what the driver does not tell" if holder.bytes is None else f"{_gib(holder.bytes)} GiB"
    return f"process {holder.pid} ({holder.who}) holds {amount}"


def _gib(size: int) -> str:
    return f"{size / _GIB:.1f}"
