"""The masks of AMD: ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, and CUDA_VISIBLE_DEVICES in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boxes import amd_box, gpu_box, inventory, options, plan_for
from vllm_stack.errors import InsufficientGpus, UsageError
from vllm_stack.gpus.amd_mask import hip_indices, hip_tokens, kept_masks, left_by_rocr, masks_in_force
from vllm_stack.gpus.box import GpuBox, Link
from vllm_stack.planning.placement import places
from vllm_stack.planning.plan import Plan
from vllm_stack.render import render

BOX = amd_box(8)
UUIDS = [gpu.uuid for gpu in BOX.gpus]


def left(mask: str, box: GpuBox = BOX) -> list[int]:
    """Give the numbers, without any mask, of the GPUs that ROCr leaves."""
    seen = left_by_rocr({"ROCR_VISIBLE_DEVICES": mask}, box)
    assert [gpu.index for gpu in seen.gpus] == list(range(len(seen.gpus)))
    return [UUIDS.index(gpu.uuid) for gpu in seen.gpus]


# What ROCr leaves.


@pytest.mark.parametrize(
    ("mask", "numbers"),
    [
        ("2,3", [2, 3]),
        ("3,2", [3, 2]),
        (" 1 , 0 ", [1, 0]),
        ("", []),
        ("0,,1", [0]),
        ("1,x,2", [1]),
        ("1,8,2", [1]),
        ("1,-1,2", [1]),
        ("1,2,1,3", [1, 2]),  # who is named again ends the list
        ("0x2,07,+1", [2, 7, 1]),
        ("1,08", [1]),
        (f"{UUIDS[5]},0", [5, 0]),
        ("gpu-5BAD,GPU-6", [5, 6]),
        ("2,GPU-,3", [2]),
        ("2,GPU-7bad0000cafe00001,3", [2]),
        ("4," + "1" * 5000, [4]),
    ],
)
def test_rocr_leaves_what_it_can_read_up_to_the_first_word_it_cannot(mask: str, numbers: list[int]) -> None:
    assert left(mask) == numbers


def test_the_beginning_of_a_uuid_that_fits_several_ends_the_list() -> None:
    one, *others = BOX.gpus
    twins = replace(BOX, gpus=(one, *(replace(gpu, uuid="GPU-0bad1111cafe0000") for gpu in others[:1])))
    assert len(left_by_rocr({"ROCR_VISIBLE_DEVICES": "GPU-0bad"}, twins).gpus) == 0
    assert len(left_by_rocr({"ROCR_VISIBLE_DEVICES": "GPU-0bad1"}, twins).gpus) == 1


def test_a_box_without_that_mask_or_of_another_make_is_left_as_it_is() -> None:
    assert left_by_rocr({"HIP_VISIBLE_DEVICES": "1"}, BOX) is BOX
    nvidia = gpu_box(2)
    assert left_by_rocr({"ROCR_VISIBLE_DEVICES": "1"}, nvidia) is nvidia


def test_links_go_with_their_gpus() -> None:
    box = replace(BOX, links=(Link(0, 1, "NVLINK"), Link(2, 5, "NVLINK"), Link(5, 7, "SYS")))
    seen = left_by_rocr({"ROCR_VISIBLE_DEVICES": "7,5,2"}, box)
    assert set(seen.links) == {Link(1, 2, "NVLINK"), Link(0, 1, "SYS")}


# What HIP takes of that.


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        ("0,1", ["0", "1"]),
        ("1,0", ["1", "0"]),
        ("", ["0", "1", "2", "3", "4", "5", "6", "7"]),
        ("3,3,1", ["3", "1"]),  # who is named again is passed over
        ("2, 3", ["2"]),
        ("02", []),
        ("2,x,3", ["2"]),
        ("2,8,3", ["2"]),
        (f"0,{UUIDS[6]}", ["0", "6"]),
        ("GPU-6BAD", []),
    ],
)
@pytest.mark.parametrize("name", ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
def test_hip_heeds_its_mask_by_either_name(name: str, mask: str, tokens: list[str]) -> None:
    assert list(hip_tokens({name: mask}, BOX)) == tokens


@pytest.mark.parametrize(
    ("hip", "cuda", "tokens"), [("1", "1", ["1"]), ("1", "", ["1"]), ("", "2", ["2"]), ("", "", ["0", "1"])]
)
def test_two_names_of_the_mask_must_agree_where_both_say_something(
    hip: str, cuda: str, tokens: list[str]
) -> None:
    masks = {"HIP_VISIBLE_DEVICES": hip, "CUDA_VISIBLE_DEVICES": cuda}
    assert list(hip_tokens(masks, amd_box(3 if hip or cuda else 2))) == tokens


def test_two_names_of_the_mask_that_differ_are_refused_as_vllm_does() -> None:
    masks = {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "0,1"}
    with pytest.raises(UsageError, match=r"HIP_VISIBLE_DEVICES='0' and CUDA_VISIBLE_DEVICES='0,1' differ"):
        hip_tokens(masks, BOX)


def test_named_gpus_become_indices_and_unknown_ones_stay_to_be_refused() -> None:
    assert hip_indices(["3", UUIDS[1], "GPU-5bad", "12"], BOX) == ("3", "1", "5", "12")


words = st.one_of(st.integers(-1, 9).map(str), st.sampled_from([*UUIDS, "GPU-3", "", "x", " 1", "0x1"]))
masks = st.lists(words, max_size=10).map(",".join)


def as_rocr_says(mask: str) -> list[int]:
    """The same rule in other words, for the words that are made up here."""
    meant = {**{str(number): number for number in range(8)}, **{uuid: n for n, uuid in enumerate(UUIDS)}}
    meant |= {"GPU-3": 3, "0x1": 1}
    found: list[int] = []
    for word in mask.split(","):
        number = meant.get(word.strip(), -1)
        if number < 0 or number in found:
            return found
        found.append(number)
    return found


def as_hip_says(mask: str, order: list[int]) -> list[int]:
    """Likewise, out of what ROCr leaves in this order; GPUs are told by their numbers without a mask."""
    meant = {str(place): number for place, number in enumerate(order)}
    meant |= {UUIDS[number]: number for number in order} | ({"GPU-3": 3} if 3 in order else {})
    if not mask:
        return order
    found: list[int] = []
    for word in mask.split(","):
        if word not in meant:
            break
        found.append(meant[word])
    return list(dict.fromkeys(found))


@given(rocr=masks, hip=masks)
def test_a_token_always_means_the_gpu_whose_facts_go_with_it(rocr: str, hip: str) -> None:
    given_masks: Mapping[str, str] = {"ROCR_VISIBLE_DEVICES": rocr, "HIP_VISIBLE_DEVICES": hip}
    order = as_rocr_says(rocr)
    seen = left_by_rocr(given_masks, BOX)
    assert [UUIDS.index(gpu.uuid) for gpu in seen.gpus] == order
    tokens = hip_tokens(given_masks, seen)
    assert [order[int(token)] for token in tokens] == as_hip_says(hip, order)
    # A worker is given some of them alone, and HIP must read these as they are.
    for some in (tokens[:2], tokens[1:], tokens[::-1]):
        assert not some or hip_tokens({"HIP_VISIBLE_DEVICES": ",".join(some)}, seen) == some


# What becomes of it.


def amd_plan(set_to: Mapping[str, str], box: GpuBox = BOX, **changes: object) -> Plan:
    """Plan as `take_inventory` would have found it."""
    found = inventory(gpus=left_by_rocr(set_to, box), gpu_masks=set_to)
    return plan_for(options(**changes), found)


def test_workers_are_pinned_by_hips_numbers_and_keep_rocrs_mask() -> None:
    plan = amd_plan({"ROCR_VISIBLE_DEVICES": "4,5,6,7", "HIP_VISIBLE_DEVICES": "3,1"})
    assert [worker.gpus for worker in plan.workers] == [("3",), ("1",)]
    assert [worker.env["ROCR_VISIBLE_DEVICES"] for worker in plan.workers] == ["4,5,6,7"] * 2
    assert plan.device == "rocm"


def test_the_files_pin_by_hip_alone() -> None:
    files = {file.path.name: file.text for file in render(amd_plan({}, tensor_parallel_size=2))}
    conf = files["supervisord.conf"]
    assert re.findall(r'^environment=(\w+="[\d,]+"),\w+="\w+"$', conf, re.M) == [
        'HIP_VISIBLE_DEVICES="0,1"',
        'HIP_VISIBLE_DEVICES="2,3"',
    ]
    assert "CUDA_DEVICE_ORDER" not in conf
    assert json.loads(files["stack.json"])["device"] == "rocm"
    worker = json.loads(files["worker-0.json"])
    assert (worker["device"], "ROCR_VISIBLE_DEVICES" in worker["env"]) == ("rocm", False)


def test_workers_keep_to_islands_of_xgmi() -> None:
    box = replace(amd_box(4), links=(Link(0, 2, "NVLINK"), Link(1, 3, "NVLINK")))
    plan = amd_plan({}, box, tensor_parallel_size=2)
    assert [worker.gpus for worker in plan.workers] == [("0", "2"), ("1", "3")]


def test_too_few_gpus_name_every_mask_that_is_heeded() -> None:
    with pytest.raises(InsufficientGpus) as raised:
        amd_plan({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert "ROCR_VISIBLE_DEVICES='2,3', HIP_VISIBLE_DEVICES='1' is respected; ROCr leaves 2" in str(
        raised.value
    )


def test_named_gpus_are_counted_in_what_rocr_leaves() -> None:
    plan = amd_plan({"ROCR_VISIBLE_DEVICES": "6,2"}, gpus=(UUIDS[2], "0"))
    assert [worker.gpus for worker in plan.workers] == [("1",), ("0",)]


def test_nvidias_workers_know_nothing_of_amds_masks() -> None:
    foreign = {"ROCR_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "7", "CUDA_VISIBLE_DEVICES": "1,0"}
    plan = amd_plan(foreign, gpu_box(2))
    assert [worker.gpus for worker in plan.workers] == [("1",), ("0",)]
    assert plan.device == "cuda"
    assert (kept_masks(foreign, gpu_box(2)), list(masks_in_force(foreign, gpu_box(2)))) == (
        {},
        ["CUDA_VISIBLE_DEVICES"],
    )
    assert [
        one.gpus[0].index for one in places(options(), inventory(gpus=gpu_box(2), gpu_masks=foreign))
    ] == [1, 0]
