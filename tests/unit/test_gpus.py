"""CUDA_VISIBLE_DEVICES and --gpus, read as CUDA reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.boxes import gpu_box
from vllm_stack.errors import UsageError
from vllm_stack.gpus.mask import parse_gpu_list, visible_tokens

GPUS = gpu_box(4).gpus


@pytest.mark.parametrize(
    ("mask", "tokens"),
    [
        (None, ("0", "1", "2", "3")),
        ("", ()),
        ("-1", ()),
        ("2,0", ("2", "0")),
        (" 1 , 3 ", ("1", "3")),
        ("0,7,1", ("0",)),  # what follows the first invalid token does not count
        ("1,1", ()),  # a duplicate empties the set
        ("GPU-1111aaaa-0000", ("GPU-1111aaaa-0000",)),
        ("GPU-2222", ("GPU-2222aaaa-0000",)),  # a prefix is completed
        ("GPU-", ()),  # one that fits several GPUs is none
        ("MIG-abc", ("MIG-abc",)),
        ("MIG-", ()),
        ("0,\u00b2", ("0",)),  # a digit, but not a number
        ("no,0", ()),
    ],
)
def test_the_mask_is_read_as_cuda_reads_it(mask: str | None, tokens: tuple[str, ...]) -> None:
    assert visible_tokens(mask, GPUS) == tokens


def test_a_mask_that_mixes_indices_and_uuids_is_refused() -> None:
    with pytest.raises(UsageError, match="mixes"):
        visible_tokens("0,GPU-1111", GPUS)


@given(st.lists(st.one_of(st.integers(-2, 9).map(str), st.just("GPU-0000"), st.text(max_size=4)), max_size=6))
def test_no_mask_yields_a_gpu_twice_or_one_that_is_not_there(words: list[str]) -> None:
    try:
        tokens = visible_tokens(",".join(words), GPUS)
    except UsageError:
        return
    assert len(set(tokens)) == len(tokens)
    known = {str(gpu.index) for gpu in GPUS} | {gpu.uuid for gpu in GPUS}
    assert set(tokens) <= known


def test_a_list_of_gpus_keeps_its_order() -> None:
    assert parse_gpu_list("5, 0,GPU-12ab") == ("5", "0", "GPU-12ab")


@pytest.mark.parametrize("text", ["", "0,,1", "a", "0,0", "-1", "0;1", "GPU-", "²"])
def test_a_list_of_gpus_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--gpus"):
        parse_gpu_list(text)
