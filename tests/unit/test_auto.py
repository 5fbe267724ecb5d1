"""`auto`: the fewest GPUs that hold the model, and as many workers as the free GPUs make."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.boxes import gpu_box, inventory, options
from vllm_stack.errors import ModelError, UsageError
from vllm_stack.gpus.box import GpuProcess
from vllm_stack.inventory import Inventory
from vllm_stack.model.config import parse_config
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.planning.auto import decide

CONFIGS = Path(__file__).parent / "configs"
BOTH = frozenset({"workers", "tensor_parallel_size"})


def box(name: str, weights: int | None, gpus: int = 8, **changes: Any) -> Inventory:
    raw = json.loads((CONFIGS / f"{name}.json").read_text("utf-8"))
    config = replace(parse_config(raw), weight_bytes=weights)
    return inventory(model=Model("org/model", "cache", config, weights), gpus=gpu_box(gpus), **changes)


def decided(given: Options, machine: Inventory) -> tuple[int, int]:
    found, reasons = decide(given, machine)
    assert found.automatic == frozenset()
    assert len(reasons) == len(given.automatic)
    return found.workers, found.tensor_parallel_size


@pytest.mark.parametrize(
    ("name", "weights", "gpus", "expected"),
    [
        ("qwen3-8b", 16_381_470_720, 8, (8, 1)),
        ("llama-3.1-70b", 141_107_412_992, 8, (2, 4)),
        ("llama-3.1-70b", 141_107_412_992, 6, (1, 4)),
        ("mixtral-8x7b", 93_405_593_600, 8, (4, 2)),
        ("smollm2-135m", 269_060_552, 3, (3, 1)),
    ],
)
def test_the_most_workers_of_the_fewest_gpus_that_hold_the_model(
    name: str, weights: int, gpus: int, expected: tuple[int, int]
) -> None:
    assert decided(options(automatic=BOTH), box(name, weights, gpus)) == expected


def test_what_the_user_said_is_kept() -> None:
    machine = box("qwen3-8b", 16_381_470_720)
    assert decided(options(workers=3, automatic=BOTH - {"workers"}), machine) == (3, 1)
    assert decided(options(tensor_parallel_size=4, automatic=frozenset({"workers"})), machine) == (2, 4)


def test_a_shorter_context_needs_fewer_gpus() -> None:
    """131,072 tokens of this model take 40 GiB, which no GPU has beside half of the weights."""
    machine = box("llama-3.1-70b", 141_107_412_992)
    short = options(automatic=BOTH, vllm_args=("--max-model-len", "4096"))
    assert decided(short, machine)[1] == 2
    assert decided(options(automatic=BOTH), machine)[1] == 4


def test_busy_gpus_count_only_if_they_may_be_used() -> None:
    machine = box("qwen3-8b", 16_381_470_720, 4)
    busy = replace(machine.gpus.gpus[1], processes=(GpuProcess(4711, "somebody", "train.py", 2**30),))
    gpus = (machine.gpus.gpus[0], busy, *machine.gpus.gpus[2:])
    machine = replace(machine, gpus=replace(machine.gpus, gpus=gpus))
    assert decided(options(automatic=BOTH), machine) == (3, 1)
    assert decided(options(automatic=BOTH, allow_busy=True), machine) == (4, 1)


def test_the_budget_is_the_mask_or_the_list_of_the_user() -> None:
    assert decided(options(automatic=BOTH), box("qwen3-8b", 2**30, gpu_mask="3,1")) == (2, 1)
    assert decided(options(automatic=BOTH, gpus=("5", "0", "2")), box("qwen3-8b", 2**30)) == (3, 1)


def test_a_model_that_no_slice_holds_is_refused_with_its_size() -> None:
    with pytest.raises(ModelError, match=r"8 free GPUs of 80\.0 GiB cannot hold org/model \(1862\.6 GiB"):
        decide(options(automatic=BOTH), box("llama-3.1-70b", 2 * 10**12))


def test_a_model_of_unknown_size_gets_one_gpu_and_that_is_said() -> None:
    found, reasons = decide(options(automatic=BOTH), box("qwen3-8b", None))
    assert (found.workers, found.tensor_parallel_size) == (8, 1)
    assert "is not known" in reasons[0]


def test_without_free_gpus_the_least_is_asked_for_so_that_the_checks_say_why() -> None:
    assert decided(options(automatic=BOTH), box("qwen3-8b", 2**30, gpus=0)) == (1, 1)


def test_workers_cannot_be_counted_by_gpus_on_a_cpu() -> None:
    with pytest.raises(UsageError, match="--workers auto counts GPUs"):
        decide(options(device="cpu", automatic=BOTH), box("qwen3-8b", 2**30))
    only_size = options(device="cpu", automatic=BOTH - {"workers"})
    assert decided(only_size, box("qwen3-8b", 2**30)) == (2, 1)
