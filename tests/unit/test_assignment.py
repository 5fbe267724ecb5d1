"""Which worker gets which GPUs, and who is named where there are not enough."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_stack.errors import GpuBusy, InsufficientGpus, StackError, UsageError
from vllm_stack.gpus.assignment import Slice, assign
from vllm_stack.gpus.box import Gpu, GpuBox, GpuProcess, Link, MigDevice

GIB = 1024**3
OWN = "vllm-stack:demo-12345678:"
PYTHON = GpuProcess(4711, "alice", "python train.py", 30 * GIB)
DESKTOP = GpuProcess(900, "bob", "/usr/lib/xorg/Xorg", GIB // 2, computes=False)
BROKEN = {"trouble": "GPU is lost", "memory_total": 0, "memory_free": 0}


def gpu(index: int, **changes: Any) -> Gpu:
    return replace(Gpu(index, f"GPU-{index:04}-aaaa", "NVIDIA H100", 80 * GIB, 79 * GIB), **changes)


def box(count: int, links: Iterable[tuple[int, int]] = (), **changes: dict[int, Any]) -> GpuBox:
    """Make a box; `changes` are attributes with their values by index, `links` are pairs with NVLink."""
    gpus = [
        gpu(index, **{name: values[index] for name, values in changes.items() if index in values})
        for index in range(count)
    ]
    return GpuBox(tuple(gpus), links=tuple(Link(min(pair), max(pair), "NVLINK") for pair in links))


def with_gpu(machine: GpuBox, index: int, **changes: Any) -> GpuBox:
    return replace(
        machine,
        gpus=tuple(replace(one, **changes) if one.index == index else one for one in machine.gpus),
    )


def nodes(*sizes: int) -> dict[int, int]:
    return dict(enumerate(itertools.chain(*([node] * size for node, size in enumerate(sizes)))))


def mig(uuid: str, **changes: Any) -> MigDevice:
    return replace(MigDevice(uuid, "NVIDIA H100 1g.10gb", 10 * GIB, 10 * GIB), **changes)


def slices(
    machine: GpuBox, workers: int, size: int, tokens: Sequence[str] | None = None, **how: Any
) -> tuple[Slice, ...]:
    words = tuple(str(one.index) for one in machine.gpus) if tokens is None else tokens
    usual = {"in_order": False, "allow_busy": False, "share": 0.92, "own_title": OWN}
    return assign(words, machine, workers, size, **{**usual, **how})


def given_out(*args: Any, **how: Any) -> list[str]:
    """Give the tokens of each slice as one word."""
    return [",".join(one.tokens) for one in slices(*args, **how)]


DGX = box(
    8,
    itertools.combinations(range(8), 2),
    numa_node=nodes(4, 4),
    cores={index: tuple(range(4)) if index < 4 else tuple(range(4, 8)) for index in range(8)},
)
PAIRS = box(4, [(0, 2), (1, 3)])
PCIE = box(8, numa_node={index: index % 2 for index in range(8)})
MIXED = box(6, name={0: "NVIDIA A40", 2: "NVIDIA A40", 5: "NVIDIA A40"})
CUT = with_gpu(box(4), 1, mig_enabled=True, migs=(mig("MIG-a"), mig("MIG-b", memory_free=GIB), mig("MIG-c")))


@pytest.mark.parametrize(
    ("machine", "workers", "size", "groups"),
    [
        (DGX, 8, 1, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (DGX, 3, 1, ["0", "1", "2"]),
        (DGX, 4, 2, ["0,1", "2,3", "4,5", "6,7"]),
        (DGX, 2, 4, ["0,1,2,3", "4,5,6,7"]),
        (DGX, 1, 8, ["0,1,2,3,4,5,6,7"]),
        (PAIRS, 2, 2, ["0,2", "1,3"]),
        (PAIRS, 1, 2, ["0,2"]),
        (PAIRS, 1, 4, ["0,1,2,3"]),
        (PCIE, 2, 4, ["0,2,4,6", "1,3,5,7"]),
        (PCIE, 4, 2, ["0,2", "1,3", "4,6", "5,7"]),
        (PCIE, 8, 1, ["0", "1", "2", "3", "4", "5", "6", "7"]),
        (MIXED, 2, 2, ["0,2", "1,3"]),
        (MIXED, 2, 3, ["0,2,5", "1,3,4"]),
        (MIXED, 3, 2, ["0,2", "1,3", "4,5"]),
        # A path of NVLinks is cut where its halves stay linked.
        (box(4, [(0, 1), (0, 2), (1, 3)]), 2, 2, ["0,2", "1,3"]),
        # An island of two is taken before one of four is broken.
        (box(6, [*itertools.combinations(range(4), 2), (4, 5)]), 1, 2, ["4,5"]),
        (box(4, [(0, 1)]), 1, 1, ["2"]),
        # NVLink counts for more than the NUMA node, and the model for more than NVLink.
        (box(4, [(0, 2), (1, 3)], numa_node=nodes(2, 2)), 2, 2, ["0,2", "1,3"]),
        (box(4, [(0, 1)], name={0: "A", 1: "B", 2: "A", 3: "B"}), 2, 2, ["0,2", "1,3"]),
        # Few NVLinks are no reason to take a lesser GPU for a worker that needs only one.
        (box(3, [(0, 1)], name={2: "NVIDIA T400"}), 1, 1, ["0"]),
        (box(2, numa_node={1: 0}), 1, 1, ["0"]),
    ],
)
def test_groups_are_of_one_kind_and_near_each_other(
    machine: GpuBox, workers: int, size: int, groups: list[str]
) -> None:
    assert given_out(machine, workers, size) == groups


def nodes_of(one: Slice) -> set[int | None]:
    return {gpu.numa_node for gpu in one.gpus}


def test_a_slice_tells_its_gpus_their_cores_and_their_node() -> None:
    first, second = slices(DGX, 2, 4)
    memory = min(gpu.memory_total for gpu in DGX.gpus)
    assert first == Slice(("0", "1", "2", "3"), DGX.gpus[:4], (0, 1, 2, 3), memory, ("0", "1", "2", "3"))
    assert (second.cores, nodes_of(second)) == ((4, 5, 6, 7), {1})
    (whole,) = slices(DGX, 1, 8)
    assert (whole.cores, nodes_of(whole)) == (tuple(range(8)), {0, 1})


def test_cores_are_unknown_unless_every_gpu_of_the_slice_tells_its_own() -> None:
    (one,) = slices(with_gpu(DGX, 2, cores=()), 1, 4)
    assert one.tokens == ("0", "1", "2", "3")
    assert one.cores == ()


def test_tokens_other_than_indices_keep_their_spelling_and_their_place() -> None:
    words = [one.uuid for one in reversed(PAIRS.gpus)]
    assert given_out(PAIRS, 2, 2, words) == [f"{words[0]},{words[2]}", f"{words[1]},{words[3]}"]


# --- who is in the way


def test_a_busy_gpu_is_left_alone_while_enough_others_are_free() -> None:
    machine = box(4, processes={0: (PYTHON,)})
    assert given_out(machine, 3, 1) == ["1", "2", "3"]
    assert given_out(machine, 3, 1, allow_busy=True) == ["1", "2", "3"]


def test_a_busy_gpu_that_is_needed_is_refused_with_the_names_of_who_is_there() -> None:
    machine = box(4, processes={1: (PYTHON, GpuProcess(5, "root", "nvidia-smi", GIB), DESKTOP)})
    with pytest.raises(GpuBusy) as caught:
        slices(machine, 2, 2)
    assert str(caught.value) == (
        "Not enough free GPUs (4 needed, 3 free): GPU 1 is used by "
        "pid 4711 (user alice, 30.0 GiB: python train.py), pid 5 (user root, 1.0 GiB: nvidia-smi); "
        "end what runs there, name other GPUs with --gpus, ask for fewer --workers, or pass --allow-busy"
    )


def test_the_largest_of_many_holders_are_named_and_the_others_counted() -> None:
    machine = box(6, processes={i: (replace(PYTHON, pid=100 + i, memory=i * GIB),) for i in range(5)})
    with pytest.raises(GpuBusy) as caught:
        slices(machine, 6, 1)
    said = str(caught.value)
    assert [said.find(f"pid 10{i}") > 0 for i in range(5)] == [False, False, True, True, True]
    assert said.index("GPU 4") < said.index("GPU 3") < said.index("GPU 2") < said.index("and 2 more")


def test_what_the_driver_does_not_tell_of_a_holder_is_not_made_up() -> None:
    stranger = GpuProcess(31, None, "no such process is seen here", None)
    with pytest.raises(GpuBusy, match=r"pid 31 \(unknown memory: no such process is seen here\); end"):
        slices(box(1, processes={0: (stranger,)}), 1, 1)


def test_busy_gpus_are_used_last_where_the_user_allows_it() -> None:
    machine = box(4, processes={0: (PYTHON,), 1: (PYTHON,)})
    assert given_out(machine, 3, 1, allow_busy=True) == ["0", "2", "3"]
    assert given_out(machine, 2, 2, allow_busy=True) == ["0,1", "2,3"]


def test_a_desktop_that_only_draws_is_in_nobodys_way() -> None:
    assert given_out(box(1, processes={0: (DESKTOP,)}, memory_free={0: 78 * GIB}), 1, 1) == ["0"]


@pytest.mark.parametrize(
    ("processes", "said"),
    [
        ((), "GPU 0 has only 70.0 GiB of 80.0 GiB free, and no process is seen that holds the rest;"),
        (
            (DESKTOP,),
            "GPU 0 has only 70.0 GiB of 80.0 GiB free, "
            "used by pid 900 (user bob, 0.5 GiB: /usr/lib/xorg/Xorg);",
        ),
    ],
)
def test_too_little_free_memory_makes_a_gpu_busy(processes: tuple[GpuProcess, ...], said: str) -> None:
    machine = box(1, memory_free={0: 70 * GIB}, processes={0: processes})
    assert given_out(machine, 1, 1, share=70 / 80) == ["0"]
    with pytest.raises(GpuBusy) as caught:
        slices(machine, 1, 1)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("own", "other", "free"),
    [
        (70 * GIB, None, True),
        (70 * GIB, 9 * GIB, False),  # who only draws is not ours, and its memory is not coming back
        (60 * GIB, None, False),  # somebody unseen holds the rest
        (None, None, True),  # nobody can say
    ],
)
def test_what_this_very_stack_holds_is_not_held_against_it(
    own: int | None, other: int | None, free: bool
) -> None:
    engine = GpuProcess(12, "me", f"{OWN}worker-0::EngineCore", own)
    drawing = () if other is None else (replace(DESKTOP, memory=other),)
    left = 80 * GIB - 70 * GIB - (other or 0)
    machine = box(1, processes={0: (engine, *drawing)}, memory_free={0: left})
    if free:
        assert given_out(machine, 1, 1) == ["0"]
    else:
        with pytest.raises(GpuBusy) as caught:
            slices(machine, 1, 1)
        assert "EngineCore" not in str(caught.value)


def test_another_stack_is_in_the_way_like_anybody_else() -> None:
    other = GpuProcess(12, "me", "vllm-stack:other-87654321:worker-0::EngineCore", 70 * GIB)
    with pytest.raises(GpuBusy, match="vllm-stack:other-87654321:worker-0"):
        slices(box(1, processes={0: (other,)}), 1, 1)


# --- too few


def test_too_few_gpus_are_refused_with_the_sentence_users_know() -> None:
    with pytest.raises(InsufficientGpus) as caught:
        slices(box(3), 2, 2)
    assert str(caught.value) == (
        "Insufficient GPUs: Required 4, but only 3 are available. "
        "Please adjust '--tensor-parallel-size' or '--workers'"
    )
    with pytest.raises(InsufficientGpus, match=r"'--workers' \(CUDA_VISIBLE_DEVICES='0' is respected\)$"):
        slices(box(3), 2, 1, ["0"], why="CUDA_VISIBLE_DEVICES='0' is respected")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (BROKEN, "GPU 3 cannot be used: GPU is lost"),
        ({"compute_mode": "prohibited"}, "GPU 3 cannot be used: its compute mode is prohibited"),
        ({"mig_enabled": True}, "GPU 3 cannot be used: MIG is enabled on it, but it has no MIG device"),
    ],
)
@pytest.mark.parametrize("allow_busy", [False, True])
def test_an_unusable_gpu_is_left_out_and_named_where_it_is_missed(
    changes: dict[str, Any], reason: str, allow_busy: bool
) -> None:
    machine = with_gpu(box(4), 3, **changes)
    assert given_out(machine, 3, 1, allow_busy=allow_busy) == ["0", "1", "2"]
    with pytest.raises(InsufficientGpus, match="Required 4, but only 3 are available") as caught:
        slices(machine, 4, 1, allow_busy=allow_busy, why="so it is")
    assert f"'--workers' ({reason}" in str(caught.value)
    assert str(caught.value).endswith("; so it is)")
    with pytest.raises(InsufficientGpus) as caught:
        slices(machine, 1, 1, ["3"], in_order=True, allow_busy=allow_busy)
    assert str(caught.value).startswith(reason)
    assert str(caught.value).endswith(": name other GPUs with --gpus")


def test_a_gpu_without_a_mig_device_is_named_although_no_token_stands_for_it() -> None:
    machine = with_gpu(box(1), 0, mig_enabled=True)
    with pytest.raises(InsufficientGpus, match=r"only 0 are .* \(GPU 0 cannot be used: MIG is enabled"):
        slices(machine, 1, 1, [])


# --- named by the user


def test_named_gpus_are_cut_into_slices_in_the_users_order() -> None:
    assert given_out(PAIRS, 2, 2, ["3", "0", "2", "1"], in_order=True) == ["3,0", "2,1"]
    assert given_out(PAIRS, 1, 2, ["3", "0", "2", "1"], in_order=True) == ["3,0"]


def test_a_named_gpu_that_is_busy_is_refused_and_not_passed_over() -> None:
    machine = box(3, processes={1: (PYTHON,)})
    with pytest.raises(GpuBusy, match=r"2 needed, 1 free\): GPU 1 is used by pid 4711"):
        slices(machine, 2, 1, ["1", "0", "2"], in_order=True)
    assert given_out(machine, 2, 1, ["1", "0", "2"], in_order=True, allow_busy=True) == ["1", "0"]
    assert given_out(machine, 2, 1, ["0", "2", "1"], in_order=True) == ["0", "2"]


def test_a_named_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InsufficientGpus, match="GPU 9 cannot be used: it is not on this machine"):
        slices(box(4), 2, 1, ["0", "9"], in_order=True)


@pytest.mark.parametrize("words", [["0", "GPU-0000"], ["1", "MIG-a"], ["GPU-0001", "MIG-a"]])
def test_a_gpu_that_is_named_twice_in_different_words_is_refused(words: list[str]) -> None:
    with pytest.raises(UsageError, match=r"is named twice, as .* and as .*: leave one out"):
        slices(CUT, 2, 1, words, in_order=True)


def test_the_beginning_of_a_uuid_is_completed_for_those_who_ask_nvml() -> None:
    assert given_out(box(2), 1, 1, ["GPU-0001"], in_order=True) == ["GPU-0001-aaaa"]


def test_named_gpus_are_taken_on_trust_where_the_driver_tells_nothing() -> None:
    unseen = GpuBox((), "the NVIDIA driver does not answer")
    first, second = slices(unseen, 2, 2, ["5", "0", "GPU-12", "7"], in_order=True)
    assert first == Slice(("5", "0"), (), (), identities=("5", "0"))
    assert second.tokens == ("GPU-12", "7")
    with pytest.raises(UsageError, match="cannot use MIG devices"):
        slices(unseen, 1, 2, ["MIG-1", "MIG-2"], in_order=True)
    with pytest.raises(InsufficientGpus, match=r"only 0 are available.*\(no driver\)"):
        slices(unseen, 1, 1, [], why="no driver")


# --- MIG


def test_a_mig_device_serves_a_worker_and_is_looked_at_for_itself() -> None:
    words = ["MIG-a", "MIG-b", "MIG-c"]
    assert given_out(CUT, 2, 1, words) == ["MIG-a", "MIG-c"]
    assert slices(CUT, 1, 1, words)[0].gpus == (CUT.gpus[1],)
    with pytest.raises(GpuBusy, match=r"MIG device MIG-b of GPU 1 has only 1\.0 GiB of 10\.0 GiB free"):
        slices(CUT, 3, 1, words)


def test_the_processes_of_a_mig_device_are_not_those_of_its_neighbours() -> None:
    machine = with_gpu(CUT, 1, processes=(PYTHON,), migs=(mig("MIG-a", processes=(PYTHON,)), mig("MIG-b")))
    assert given_out(machine, 1, 1, ["MIG-a", "MIG-b"]) == ["MIG-b"]
    old = f"MIG-{machine.gpus[1].uuid}/7/0"  # the driver does not tell which one that is
    assert given_out(machine, 1, 1, [old], in_order=True) == [old]


def test_mig_devices_are_left_out_where_whole_gpus_are_enough() -> None:
    words = ["MIG-a", "0", "MIG-b", "2", "MIG-c", "3"]
    assert given_out(CUT, 1, 2, words) == ["0,2"]
    assert given_out(CUT, 1, 3, words) == ["0,2,3"]


@pytest.mark.parametrize(
    ("words", "in_order"),
    [(["0", "MIG-a", "MIG-c"], False), (["0", "MIG-a", "2"], True), (["0", "1"], True), (["0", "1"], False)],
)
def test_mig_devices_that_would_have_to_be_joined_are_refused(words: list[str], in_order: bool) -> None:
    with pytest.raises(UsageError) as caught:
        slices(CUT, 1, 2, words, in_order=in_order)
    assert str(caught.value) == (
        "--tensor-parallel-size 2 cannot use MIG devices: CUDA gives a process one of them; "
        "use --tensor-parallel-size 1, or switch MIG off"
    )


# --- any box


@st.composite
def boxes(draw: st.DrawFn) -> GpuBox:
    count = draw(st.integers(1, 8))
    states: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
        [{}, {}, {}, {"processes": (PYTHON,)}, {"memory_free": 9 * GIB}, BROKEN]
    )
    gpus = [
        gpu(
            index,
            name=draw(st.sampled_from(["A", "A", "A", "B"])),
            numa_node=draw(st.sampled_from([None, 0, 0, 1])),
            **draw(states),
        )
        for index in range(count)
    ]
    pairs = list(itertools.combinations(range(count), 2))
    linked = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return GpuBox(tuple(gpus), links=tuple(Link(one, other, "NVLINK") for one, other in linked))


def is_free(one: Gpu) -> bool:
    return one.trouble is None and not one.processes and one.memory_free > 79 * GIB - 1


def outcome(*args: Any, **how: Any) -> list[str] | type[StackError]:
    try:
        return given_out(*args, **how)
    except StackError as error:
        return type(error)


SIZES = st.integers(1, 4)


@given(boxes(), SIZES, SIZES, st.booleans(), st.booleans(), st.randoms(use_true_random=False))
def test_every_worker_gets_its_own_gpus_or_the_whole_stack_is_refused(
    machine: GpuBox, workers: int, size: int, in_order: bool, allow_busy: bool, shuffled: random.Random
) -> None:
    words = [str(one.index) for one in machine.gpus]
    shuffled.shuffle(words)
    needed = workers * size
    ways: dict[str, Any] = {"in_order": in_order, "allow_busy": allow_busy}
    found = outcome(machine, workers, size, words, **ways)
    assert found == outcome(machine, workers, size, words, **ways)
    asked = words[:needed] if in_order else words
    usable = [word for word in asked if machine.gpus[int(word)].trouble is None]
    free = [word for word in usable if is_free(machine.gpus[int(word)])]
    if len(usable) < needed:
        assert found is InsufficientGpus
    elif len(free) < needed and not allow_busy:
        assert found is GpuBusy
    else:
        assert isinstance(found, list)
        groups = [group.split(",") for group in found]
        given_words = list(itertools.chain(*groups))
        assert [len(group) for group in groups] == [size] * workers
        assert len(set(given_words)) == needed
        assert set(given_words) <= set(usable)
        # A busy one is used only when no free one is left.
        assert set(given_words) <= set(free) or set(given_words) >= set(free)
        if in_order:
            assert given_words == words[:needed]
        else:
            places = [[words.index(word) for word in group] for group in groups]
            assert places == sorted(sorted(group) for group in places)


@given(st.data(), st.sampled_from([2, 3]))
def test_islands_of_nvlink_are_kept_whole(data: st.DataObject, size: int) -> None:
    islands = data.draw(st.lists(st.sampled_from([size, 2 * size]), min_size=1, max_size=3))
    numbers = data.draw(st.permutations(range(sum(islands))))
    home: dict[int, int] = {}
    links: list[tuple[int, int]] = []
    for island, length in enumerate(islands):
        members = [numbers[len(home) + offset] for offset in range(length)]
        links += itertools.combinations(members, 2)
        home |= dict.fromkeys(members, island)
    node = data.draw(st.fixed_dictionaries({number: st.sampled_from([0, 1]) for number in numbers}))
    workers = data.draw(st.integers(1, sum(islands) // size))
    found = slices(box(len(numbers), links, numa_node=node), workers, size)
    assert all(len({home[int(token)] for token in one.tokens}) == 1 for one in found)


@given(boxes(), SIZES, SIZES, st.data())
def test_what_happens_to_gpus_out_of_reach_changes_nothing(
    machine: GpuBox, workers: int, size: int, data: st.DataObject
) -> None:
    words = data.draw(st.lists(st.sampled_from([str(one.index) for one in machine.gpus]), unique=True))
    outside = [one.index for one in machine.gpus if str(one.index) not in words]
    before = outcome(machine, workers, size, words)
    changed = machine
    for index in outside:
        changed = with_gpu(changed, index, processes=(PYTHON,), memory_free=0)
    more = tuple(Link(one, 99, "NVLINK") for one in range(8)) + tuple(
        Link(min(one, two.index), max(one, two.index), "NVLINK")
        for one in outside
        for two in machine.gpus
        if two.index != one and machine.way(one, two.index) is None
    )
    assert outcome(replace(changed, links=machine.links + more), workers, size, words) == before


@given(st.integers(1, 8), SIZES, SIZES, st.data())
def test_a_process_on_a_gpu_that_was_not_chosen_moves_nobody(
    count: int, workers: int, size: int, data: st.DataObject
) -> None:
    machine = box(count, numa_node=nodes(count // 2, count - count // 2))
    before = outcome(machine, workers, size)
    chosen = set(itertools.chain(*(group.split(",") for group in before))) if isinstance(before, list) else ()
    others = [one.index for one in machine.gpus if str(one.index) not in chosen]
    if isinstance(before, list) and others:
        busy = with_gpu(machine, data.draw(st.sampled_from(others)), processes=(PYTHON,))
        assert outcome(busy, workers, size) == before


@pytest.mark.parametrize("size", [2, 4, 8])
def test_sixteen_gpus_are_shared_out_at_once(size: int) -> None:
    machine = box(16, itertools.combinations(range(16), 2), numa_node=nodes(8, 8))
    begun = time.process_time()
    found = slices(machine, 16 // size, size)
    assert time.process_time() - begun < 1  # some 0.06 s
    assert all(len(nodes_of(one)) == 1 for one in found)


def test_a_box_with_very_many_gpus_is_shared_out_too() -> None:
    begun = time.process_time()
    found = slices(box(64), 8, 8)
    assert time.process_time() - begun < 1
    assert found[7].tokens == tuple(str(index) for index in range(56, 64))
