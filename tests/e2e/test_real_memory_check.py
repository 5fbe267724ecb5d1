"""The wrapper asks for the memory that the real vLLM asks for, whatever its command line says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_stack.vllm_arguments import needed_share
from vllm_stack.worker.gpu_memory import GpuMemory, occupied

# For each command line the share vLLM reads from it, and whether it would start with one byte less
# than that of a GPU, and with exactly that.
ASK_VLLM = """
import json, math, sys
from vllm.config import CacheConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.utils.mem_utils import MemorySnapshot
from vllm.v1.worker.utils import request_memory

def starts(free, total, share):
    snapshot = MemorySnapshot(device="cpu", auto_measure=False)
    snapshot.free_memory, snapshot.total_memory = free, total
    try:
        request_memory(snapshot, CacheConfig(gpu_memory_utilization=share))
    except ValueError:
        return False
    return True

parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
lines, total = json.load(sys.stdin)
shares = [parser.parse_args(line).gpu_memory_utilization for line in lines]
asked = [math.ceil(total * share) for share in shares]
print(json.dumps([
    (share, starts(size - 1, total, share), starts(size, total, share))
    for share, size in zip(shares, asked)
]))
"""
TOTAL = 85_362_475_008 - 4097


@pytest.mark.timeout(300)
def test_the_wrapper_waits_for_exactly_what_real_vllm_asks_for(tmp_path: Path) -> None:
    config = tmp_path / "vllm.yaml"
    config.write_text("gpu_memory_utilization: 0.4\nmax-model-len: 1024\n")
    lines = [
        line.split()
        for line in (
            "",
            "--gpu-memory-utilization 0.5",
            "--gpu_memory_utilization=0.51",
            "--device-memory-utilization 0.3",
            "--gpu-mem 0.77",
            "--gpu-memory-utilization 0.5 --gpu_memory_utilization=0.7",
            "--kv-cache-memory-bytes 10G",
            f"--config {config}",
            f"--gpu-memory-utilization 0.6 --config {config}",
        )
    ]
    done = subprocess.run(
        [sys.executable, "-c", ASK_VLLM],
        input=json.dumps([lines, TOTAL]),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [needed_share(line) for line in lines] == [share for share, _, _ in told]
    for share, with_less, with_enough in told:
        asked = math.ceil(TOTAL * share)
        short, enough = (GpuMemory("0", "a GPU", TOTAL, free) for free in (asked - 1, asked))
        assert (with_less, with_enough) == (not occupied([short], share), not occupied([enough], share))
        assert (with_less, with_enough) == (False, True)
