"""Several models on one box: each has its GPUs, nobody has another's, and the order is for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.boxes import GIB, amd_box, gpu_box, inventory, machine, options
from vllm_stack.checks.finding import Finding
from vllm_stack.checks.run import refuse, run_checks
from vllm_stack.errors import ModelError, StackError, UsageError
from vllm_stack.gpus.box import GpuBox, GpuProcess, Link, MigDevice
from vllm_stack.model.config import ModelConfig
from vllm_stack.model.find import Model
from vllm_stack.planning.deployment import Deployment
from vllm_stack.planning.placement import places
from vllm_stack.planning.plan import make_plan
from vllm_stack.planning.sharing import share_out

LOW_SHARE = ("--gpu-memory-utilization", "0.4")


def model(number: int, box: GpuBox, weights: int | None = None, **changes: Any) -> Deployment:
    """Make a model of 16 heads: `workers` and `tensor_parallel_size` may be "auto"."""
    automatic = {name for name in ("workers", "tensor_parallel_size") if changes.get(name) == "auto"}
    wanted = {"workers": 1, "model": f"org/m{number}", **changes, **dict.fromkeys(automatic, 1)}
    config = ModelConfig(attention_heads=16, kv_heads=16, weight_bytes=weights)
    found = Model(wanted["model"], "cache", config, weights)
    return Deployment(
        options(automatic=frozenset(automatic), **wanted), inventory(gpus=box, model=found, gpu_masks={})
    )


def models(box: GpuBox, *wanted: dict[str, Any]) -> list[Deployment]:
    return [model(number, box, **changes) for number, changes in enumerate(wanted)]


def gpus_of(one: Deployment) -> list[str]:
    """Give the words of each worker as one; none where there is no place."""
    try:
        return [",".join(place.tokens) for place in places(one.options, one.inventory)]
    except StackError:
        return []


def given_out(deployments: Sequence[Deployment]) -> list[list[str]]:
    return [gpus_of(one) for one in share_out(deployments)[0]]


def linked(count: int, *pairs: tuple[int, int]) -> GpuBox:
    return replace(gpu_box(count), links=tuple(Link(*pair, "NVLINK") for pair in pairs))


def with_migs(box: GpuBox, index: int, *uuids: str) -> GpuBox:
    migs = tuple(MigDevice(uuid, "1g.10gb", 10 * GIB, 10 * GIB) for uuid in uuids)
    cut = replace(box.gpus[index], mig_enabled=True, migs=migs)
    return replace(box, gpus=(*box.gpus[:index], cut, *box.gpus[index + 1 :]))


PAIRS = linked(8, (0, 4), (1, 5), (2, 6), (3, 7))


@pytest.mark.parametrize(
    ("box", "wanted", "expected"),
    [
        # In their order, as long as nothing speaks for another.
        (gpu_box(4), [{"workers": 2}, {}, {}], [["0", "1"], ["2"], ["3"]]),
        # Whoever names GPUs has them, wherever they stand.
        (gpu_box(4), [{"workers": 2}, {"gpus": ("0", "2"), "workers": 2}], [["1", "3"], ["0", "2"]]),
        # Large slices first: they need what lies together.
        (PAIRS, [{}, {"tensor_parallel_size": 2}, {"workers": 2}], [["1"], ["0,4"], ["2", "5"]]),
        (
            linked(4, (0, 1), (2, 3)),
            [{"workers": 1}, {"workers": 1}, {"tensor_parallel_size": 2}],
            [["2"], ["3"], ["0,1"]],
        ),
        # Whoever leaves the number open takes what is left.
        (gpu_box(6), [{"workers": "auto"}, {"tensor_parallel_size": 4}], [["4", "5"], ["0,1,2,3"]]),
        (
            gpu_box(6),
            [{"workers": "auto", "tensor_parallel_size": 2}, {}, {"gpus": ("0",)}],
            [["2,3", "4,5"], ["1"], ["0"]],
        ),
        # Two may, with GPUs of their own.
        (
            gpu_box(4),
            [{"workers": "auto", "gpus": ("3", "1")}, {"workers": "auto"}],
            [["3", "1"], ["0", "2"]],
        ),
        # A model for which there is no place takes none from the others.
        (gpu_box(2), [{"tensor_parallel_size": 4}, {"workers": 2}], [[], ["0", "1"]]),
        (gpu_box(2), [{"workers": 0}, {"workers": 2}], [[], ["0", "1"]]),
        # One GPU by two names.
        (gpu_box(2), [{"gpus": ("GPU-1",)}, {"workers": 1}], [["GPU-1111aaaa-0000"], ["0"]]),
        (gpu_box(2), [{"gpus": ("1",)}, {"gpus": ("GPU-1111aaaa-0000",)}], [["1"], []]),
        # MIG devices are given away one by one.
        (with_migs(gpu_box(2), 0, "MIG-a", "MIG-b"), [{"workers": 2}, {}], [["MIG-a", "MIG-b"], ["1"]]),
        (with_migs(gpu_box(2), 0, "MIG-a", "MIG-b"), [{"gpus": ("MIG-b",)}, {}], [["MIG-b"], ["MIG-a"]]),
        (with_migs(gpu_box(2), 0, "MIG-a", "MIG-b"), [{"gpus": ("0",)}, {"gpus": ("MIG-a",)}], [["0"], []]),
        (with_migs(gpu_box(3), 0, "MIG-a"), [{}, {"tensor_parallel_size": 2}], [["MIG-a"], ["1,2"]]),
        (with_migs(gpu_box(2), 0, "MIG-a"), [{}, {"tensor_parallel_size": 2}], [["MIG-a"], []]),
        # Where no driver tells, names are taken on trust.
        (GpuBox((), "no driver"), [{"gpus": ("1",)}, {"gpus": ("0",)}, {}], [["1"], ["0"], []]),
        (GpuBox((), "no driver"), [{"gpus": ("1", "2")}, {"gpus": ("1",)}], [["1"], []]),
        (amd_box(4), [{}, {"tensor_parallel_size": 2}, {"gpus": ("0",)}], [["3"], ["1,2"], ["0"]]),
    ],
)
def test_who_gets_what(box: GpuBox, wanted: list[dict[str, Any]], expected: list[list[str]]) -> None:
    assert given_out(models(box, *wanted)) == expected


def test_a_gpu_of_two_models_is_refused_and_given_to_both_if_busy_ones_may_be_used() -> None:
    wanted = [{"gpus": ("GPU-0000",), "vllm_args": LOW_SHARE}, {"gpus": ("0", "1"), "workers": 2}]
    shared, _ = share_out(models(gpu_box(2), *wanted))
    with pytest.raises(UsageError, match="GPU 0 is given to two models"):
        places(shared[1].options, shared[1].inventory)
    allowed = [{**one, "allow_busy": True} for one in wanted]
    assert given_out(models(gpu_box(2), *allowed)) == [["GPU-0000aaaa-0000"], ["0", "1"]]


def test_a_gpu_named_in_two_ways_is_one_gpu() -> None:
    shared, _ = share_out(models(gpu_box(2), {"gpus": ("1",)}, {"gpus": ("GPU-1111aaaa-0000",)}))
    with pytest.raises(UsageError, match="GPU 1 is given to two models"):
        places(shared[1].options, shared[1].inventory)


def test_busy_gpus_may_be_used_but_not_those_of_other_models() -> None:
    box = gpu_box(3)
    held = replace(box.gpus[0], processes=(GpuProcess(4711, "somebody", "train.py", GIB),))
    box = replace(box, gpus=(held, *box.gpus[1:]))
    assert given_out(models(box, {}, {}, {"allow_busy": True})) == [["1"], ["2"], ["0"]]
    assert given_out(models(box, {"allow_busy": True}, {"workers": 2})) == [["1"], []]


def test_what_the_others_have_is_said_where_it_is_missed() -> None:
    shared, _ = share_out(models(gpu_box(4), {"tensor_parallel_size": 2}, {"workers": 3}))
    with pytest.raises(StackError, match=r"Required 3, but only 2 .*2 belong to the other models"):
        places(shared[1].options, shared[1].inventory)
    refused = [row for row, finding in run_checks(shared).items() if finding.error]
    assert refused == ["gpus org/m1"]


def test_decisions_name_their_model_where_there_are_several() -> None:
    wanted = {"workers": "auto", "tensor_parallel_size": "auto"}
    box = gpu_box(4)
    _, of_one = share_out([model(0, box, 16 * GIB, **wanted)])
    _, of_two = share_out([model(0, box, 16 * GIB, **wanted), model(1, box)])
    assert [said.partition(":")[0] for said in of_one] == ["--tensor-parallel-size auto", "--workers auto"]
    assert of_two[0].startswith("org/m0: --tensor-parallel-size auto: 1")
    assert of_two[1].startswith("org/m0: --workers auto: 3")


def test_a_size_left_open_is_decided_by_what_the_others_leave() -> None:
    """100 GiB of weights take two GPUs, and there is one left."""
    box = gpu_box(3)
    large = model(1, box, 100 * GIB, tensor_parallel_size="auto")
    shared, _ = share_out([model(0, box), large])
    assert [one.options.tensor_parallel_size for one in shared] == [1, 2]
    with pytest.raises(StackError, match=r"1 free GPU of .* cannot hold org/m1"):
        share_out([model(0, box, workers=2), large])


def test_decisions_are_told_in_the_order_of_the_models() -> None:
    """The second one decides first, as it names its GPUs."""
    _, decisions = share_out(models(gpu_box(3), {"workers": "auto"}, {"workers": "auto", "gpus": ("1",)}))
    assert [said.partition(":")[0] for said in decisions] == ["org/m0", "org/m1"]


@pytest.mark.parametrize("others", [1, 2])
def test_one_model_only_may_take_the_rest(others: int) -> None:
    wanted = models(gpu_box(4), *[{"workers": "auto"}] * (1 + others), {})
    with pytest.raises(UsageError, match="org/m0 and org/m1") as caught:
        share_out(wanted)
    assert "org/m3" not in str(caught.value)


def test_cores_of_a_box_without_gpus_are_shared_by_all_models() -> None:
    def on_cpu(number: int, workers: int) -> Deployment:
        one = model(number, GpuBox(()), device="cpu", workers=workers)
        return replace(one, inventory=replace(one.inventory, machine=machine(cores=tuple(range(6)))))

    shared, _ = share_out([on_cpu(0, 1), on_cpu(1, 2)])
    cores = [place.cores for one in shared for place in places(one.options, one.inventory)]
    assert cores == [(0, 1), (2, 3), (4, 5)]


# --- whatever the box and the wishes


@st.composite
def boxes(draw: st.DrawFn) -> GpuBox:
    count = draw(st.integers(0, 8))
    pairs = [(one, other) for one in range(count) for other in range(one + 1, count)]
    box = linked(
        count, *draw(st.lists(st.sampled_from(pairs), unique=True, max_size=8) if pairs else st.just([]))
    )
    for index in draw(st.sets(st.integers(0, count - 1), max_size=1) if count else st.just(set())):
        box = with_migs(
            box, index, *(f"MIG-{index}{part}" for part in draw(st.sampled_from(["", "a", "ab"])))
        )
    return box


@st.composite
def wishes(draw: st.DrawFn, box: GpuBox) -> list[dict[str, Any]]:
    words = [word for gpu in box.gpus for word in (str(gpu.index), gpu.uuid, *(mig.uuid for mig in gpu.migs))]
    named = st.lists(st.sampled_from(words), unique=True, min_size=1, max_size=4) if words else st.none()
    wanted = [
        {
            "gpus": None if (gpus := draw(st.one_of(st.none(), named))) is None else tuple(gpus),
            "workers": draw(st.integers(0, 3)),
            "tensor_parallel_size": draw(st.sampled_from([1, 1, 2, 4])),
        }
        for _ in range(draw(st.integers(1, 4)))
    ]
    if draw(st.booleans()):
        draw(st.sampled_from(wanted))["workers"] = "auto"
    return wanted


def devices(one: Deployment) -> list[str]:
    """Give the hardware behind its places: MIG devices, or GPUs, by what the box calls them."""
    try:
        slices = places(one.options, one.inventory)
    except StackError:
        return []
    cut = {str(gpu.index): gpu.migs[0].uuid for gpu in one.inventory.gpus.gpus if gpu.migs}
    by_uuid = {gpu.uuid: str(gpu.index) for gpu in one.inventory.gpus.gpus}
    words = [by_uuid.get(word, word) for place in slices for word in place.tokens]
    return [cut.get(word, word) for word in words]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_gpu_is_given_twice_and_workers_are_numbered_in_the_order_of_the_models(
    data: st.DataObject,
) -> None:
    box = data.draw(boxes())
    wanted = models(box, *data.draw(wishes(box)))
    try:
        shared, decisions = share_out(wanted)
    except StackError:
        assert any(one.options.automatic for one in wanted)
        return
    assert (shared, decisions) == share_out(wanted)
    taken = [device for one in shared for device in devices(one)]
    assert len(set(taken)) == len(taken)
    assert [one.options.model for one in shared] == [one.options.model for one in wanted]
    numbers = [index for one in shared for index in one.options.worker_indices]
    assert numbers == list(range(sum(one.options.workers for one in shared)))
    assert all(one.options.all_workers == len(numbers) for one in shared)
    assert not any(one.options.automatic for one in shared)
    for one in shared:
        if one.options.gpus is not None:
            assert all(word in one.options.gpus for place in gpus_of(one) for word in place.split(","))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from([1, 2, 4])), min_size=1, max_size=3),
    st.integers(0, 2),
    st.randoms(use_true_random=False),
)
def test_where_there_is_enough_everybody_has_enough(
    wanted: list[tuple[int, int]], more: int, random: Any
) -> None:
    needed = sum(workers * size for workers, size in wanted)
    pairs = [(one, one + 1) for one in range(0, needed + more - 1, 2)]
    box = linked(needed + more, *random.sample(pairs, len(pairs) // 2))
    asked = [{"workers": workers, "tensor_parallel_size": size} for workers, size in wanted]
    assert [len(gpus_of(one)) for one in share_out(models(box, *asked))[0]] == [one for one, _ in wanted]


def test_the_plan_gives_every_worker_the_gpus_and_the_options_of_its_model() -> None:
    deployments, _ = share_out(
        models(
            gpu_box(5),
            {"workers": 2, "aliases": ("chat",)},
            {"tensor_parallel_size": 2, "vllm_args": ("--seed", "1")},
        )
    )
    plan = make_plan(deployments)
    assert [(one.name, one.gpus, str(one.address)) for one in plan.workers] == [
        ("worker-0", ("2",), "127.0.0.1:5001"),
        ("worker-1", ("3",), "127.0.0.1:5002"),
        ("worker-2", ("0", "1"), "127.0.0.1:5003"),
    ]
    assert [one.servers for one in plan.models] == [("worker-0", "worker-1"), ("worker-2",)]
    assert [one.argv[2] for one in plan.workers] == ["org/m0", "org/m0", "org/m1"]
    assert plan.workers[2].argv[-2:] == ("--seed", "1")
    assert plan.workers[0].argv[9:12] == ("--served-model-name", "org/m0", "chat")
    assert len({one.engine for one in plan.workers}) == 2


def checked(*deployments: Deployment) -> dict[str, Finding]:
    return run_checks(share_out(deployments)[0])


def test_without_a_driver_gpus_are_missing_to_whom_names_none() -> None:
    """The other one names its GPUs, and is believed."""
    unseen = GpuBox((), "there is no driver")
    assert checked(*models(unseen, {"gpus": ("0",)}))["driver"].verdict == "warning"
    assert checked(*models(unseen, {"gpus": ("0",)}, {}))["driver"].verdict == "refused"


def test_a_refusal_names_its_model_though_the_sentence_has_its_letters() -> None:
    named = {"vllm_args": ("--served-model-name", "ea"), "tensor_parallel_size": 3}
    findings = checked(*models(gpu_box(8), {}, named))
    assert findings["heads ea"].verdict == "refused"
    with pytest.raises(ModelError, match=r"^ea: .*heads"):
        refuse(findings)


def test_where_nothing_can_be_decided_the_model_is_named() -> None:
    with pytest.raises(UsageError, match=r"^org/m1: GPU 0 is given to two models"):
        share_out(models(gpu_box(4), {"gpus": ("0",)}, {"gpus": ("0", "1"), "workers": "auto"}))


def test_aliases_and_served_names_exclude_each_other_however_they_are_spelled() -> None:
    for spelled in ("--served-model-name", "--served_model_name", "--served"):
        both = model(0, gpu_box(2), aliases=("b",), vllm_args=(spelled, "a"))
        assert checked(both)["options"].verdict == "refused"


@pytest.mark.parametrize(
    ("shares", "stagger", "verdict"),
    [
        (("0.5", "0.4"), "60", "ok"),
        (("0.5", "0.4"), "auto", "warning"),
        (("0.5", "0.6"), "60", "refused"),
    ],
)
def test_a_gpu_of_two_models_has_memory_for_both(shares: tuple[str, str], stagger: str, verdict: str) -> None:
    common = {"gpus": ("1",), "allow_busy": True, "start_stagger": stagger}
    asked = [{**common, "vllm_args": ("--gpu-memory-utilization", share)} for share in shares]
    assert checked(*models(gpu_box(2), *asked))["gpu-sharing"].verdict == verdict
    assert "gpu-sharing" not in checked(*models(gpu_box(2), *asked[:1]))
