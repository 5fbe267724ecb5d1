"""CUDA_VISIBLE_DEVICES and --gpus, read as CUDA reads them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vllm_stack.errors import UsageError
from vllm_stack.gpus.box import Gpu, GpuBox, MigDevice
from vllm_stack.gpus.mask import find, parse_gpu_list, visible_tokens

GIB = 1024**3
UUIDS = tuple(f"GPU-{digit * 4}aaaa-0000" for digit in "0123")
WHOLE = GpuBox(tuple(Gpu(i, uuid, "NVIDIA H100", 80 * GIB, 80 * GIB) for i, uuid in enumerate(UUIDS)))


def mig_gpu(index: int, *migs: str) -> Gpu:
    devices = tuple(MigDevice(uuid, "NVIDIA H100 1g.10gb", 10 * GIB, 10 * GIB) for uuid in migs)
    return Gpu(index, UUIDS[index], "NVIDIA H100", 80 * GIB, 80 * GIB, mig_enabled=True, migs=devices)


CUT = GpuBox((WHOLE.gpus[0], mig_gpu(1, "MIG-aa-1", "MIG-aa-2"), mig_gpu(2), WHOLE.gpus[3]))


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ()),
        (" ", ()),
        ("-1", ()),
        ("2,-1,0", ("2",)),
        ("2,0", ("2", "0")),
        (" 1 , 3 ", ("1", "3")),
        ("+1,02", ("1", "2")),
        ("1gpu,2x", ("1", "2")),  # what follows the digits does not count
        ("0,7,1", ("0",)),  # what follows the first invalid token does not count
        ("0,,1", ("0",)),
        ("0," + "9" * 5000, ("0",)),
        ("1,1", ()),  # a duplicate empties the set
        ("1,01", ()),
        ("GPU-1111aaaa-0000", ("GPU-1111aaaa-0000",)),
        ("GPU-2222", ("GPU-2222aaaa-0000",)),  # a prefix is completed
        ("GPU-2222,GPU-2222aaaa-0000", ()),
        ("GPU-", ()),  # one that fits several GPUs is none
        ("GPU-9", ()),
        ("gpu-1111", ()),
        ("MIG-aa-1", ()),
        ("0,\u00b2", ("0",)),  # a digit, but not a number
        ("no,0", ()),
    ],
)
def test_the_mask_is_read_as_cuda_reads_it(mask: str | None, tokens: tuple[str, ...]) -> None:
    assert visible_tokens(mask, WHOLE) == tokens


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        (None, ("0", "MIG-aa-1", "MIG-aa-2", "3")),
        ("MIG-aa-2,MIG-aa-1", ("MIG-aa-2", "MIG-aa-1")),
        ("MIG-aa", ()),  # only whole UUIDs of MIG devices are taken
        ("MIG-aa-1,MIG-aa-9,MIG-aa-2", ("MIG-aa-1",)),
        ("MIG-aa-1,MIG-aa-1", ()),
        ("1,0", ("1", "0")),  # CUDA gives the process the first MIG device of GPU 1
        ("GPU-1111", ("GPU-1111aaaa-0000",)),
        (f"MIG-{UUIDS[1]}/1/0", (f"MIG-{UUIDS[1]}/1/0",)),  # as drivers before 470 call it
        (f"MIG-{UUIDS[0]}/1/0", ()),
        ("MIG-GPU-1111/1/0", ()),
    ],
)
def test_mig_devices_stand_in_for_the_gpu_that_is_cut_into_them(
    mask: str | None, tokens: tuple[str, ...]
) -> None:
    assert visible_tokens(mask, CUT) == tokens


@pytest.mark.parametrize("mask", ["0,GPU-1111", "GPU-0000,1", "0,MIG-aa-1", "MIG-aa-1,GPU-0000"])
def test_a_mask_that_mixes_kinds_of_words_is_refused(mask: str) -> None:
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES=.* mixes .*: use one kind, or .*--gpus"):
        visible_tokens(mask, CUT)


def test_a_box_that_cannot_be_read_leaves_nothing_of_a_mask() -> None:
    box = GpuBox((), "no NVIDIA driver was found")
    assert visible_tokens(None, box) == visible_tokens("0,1", box) == ()


def test_a_gpu_that_is_cut_is_taken_for_its_first_mig_device() -> None:
    named = find("1", CUT)
    assert named is not None
    assert named.is_mig
    assert named.mig == CUT.gpus[1].migs[0]
    assert find("MIG-aa-2", CUT) != find("MIG-aa-1", CUT)
    whole = find("0", CUT)
    assert whole is not None
    assert not whole.is_mig


def reference(mask: str, box: GpuBox) -> tuple[str, ...] | None:
    """CUDA's rules once more, by elimination: the first kind decides how the words are looked up.

    None where kinds are mixed before the first word that names nothing.
    """
    indices = {str(gpu.index): str(gpu.index) for gpu in box.gpus}
    migs = {mig.uuid: mig.uuid for gpu in box.gpus for mig in gpu.migs}
    prefixes: dict[str, set[str]] = {}
    for gpu in box.gpus:
        for length in range(len("GPU-"), len(gpu.uuid) + 1):
            prefixes.setdefault(gpu.uuid[:length], set()).add(gpu.uuid)
    uuids = {prefix: next(iter(fits)) for prefix, fits in prefixes.items() if len(fits) == 1}
    seen: list[tuple[int, str]] = []
    for raw in mask.split(","):
        word = raw.strip()
        digits = ""
        for letter in word.removeprefix("+"):
            if letter not in "0123456789":
                break
            digits += letter
        number = str(int(digits)) if digits else ""
        hits = [
            (kind, names[key])
            for kind, (names, key) in enumerate([(indices, number), (uuids, word), (migs, word)])
            if key in names
        ]
        if not hits:
            break
        seen += hits
    if len({kind for kind, _ in seen}) > 1:
        return None
    return () if len(set(seen)) < len(seen) else tuple(token for _, token in seen)


WORDS = st.one_of(
    st.integers(-2, 5).map(str),
    st.sampled_from(["0", "1", "3", "00", "+2", "1x", "", " ", "-", "+", "GPU-", "MIG-", "²", "٣"]),
    st.sampled_from(UUIDS),
    st.builds(lambda uuid, length: uuid[:length], st.sampled_from(UUIDS), st.integers(3, 12)),
    st.sampled_from(["MIG-aa-1", "MIG-aa-2", "MIG-aa", "mig-aa-1"]),
    st.text(alphabet=st.characters(exclude_characters=","), max_size=4),
)
SPACES = st.sampled_from(["", " ", "\t"])
SPACED = st.tuples(SPACES, WORDS, SPACES).map("".join)
# Words of one kind, so that not every mask ends at its second word.
ONE_KIND = st.one_of(
    st.lists(st.sampled_from(["0", "1", "2", "3", " 3", "02", "7", "-1"]), max_size=5),
    st.lists(st.sampled_from([*UUIDS, "GPU-0", "GPU-11 ", "GPU-2222a", "GPU-x"]), max_size=5),
    st.lists(st.sampled_from(["MIG-aa-1", "MIG-aa-2", "MIG-aa-3"]), max_size=3),
)


@given(st.one_of(ONE_KIND, st.lists(SPACED, max_size=5)), st.sampled_from([WHOLE, CUT]))
@example(["0", "1", "1", "9"], WHOLE)
def test_any_mask_is_read_as_by_the_rules_written_down_once_more(words: list[str], box: GpuBox) -> None:
    mask = ",".join(words)
    try:
        tokens = visible_tokens(mask, box)
    except UsageError:
        assert reference(mask, box) is None
    else:
        assert tokens == reference(mask, box)
        # What a worker is told means to CUDA what it means to us.
        assert visible_tokens(",".join(tokens), box) == tokens


def test_a_list_of_gpus_keeps_its_order() -> None:
    assert parse_gpu_list("5, 0,GPU-12ab") == ("5", "0", "GPU-12ab")


def test_a_list_of_gpus_takes_the_names_of_mig_devices_old_and_new() -> None:
    text = "MIG-aa-1,MIG-GPU-1111aaaa-0000/1/0"
    assert parse_gpu_list(text) == tuple(text.split(","))


@pytest.mark.parametrize(
    "text", ["", "0,,1", "a", "0,0", "0,00", "-1", "0;1", "GPU-", "MIG-GPU-1/1", "GPU-1/0/0", "²"]
)
def test_a_list_of_gpus_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--gpus"):
        parse_gpu_list(text)
