"""Files of weights that are damaged, or made to do harm: they tell nothing, and nothing waits for them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_stack.model.weights import read_weights, read_wide_bytes
from vllm_stack.sizes import GIB

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda part: st.lists(part) | st.dictionaries(st.text(), part), max_leaves=8)
TENSORS = st.fixed_dictionaries(
    {}, optional={"dtype": JSON | st.sampled_from(["F32", "F64", "BF16"]), "data_offsets": JSON}
)


def safetensors(directory: Path, header: Any) -> None:
    head = json.dumps(header).encode()
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)


@given(JSON | st.dictionaries(st.text(), JSON | TENSORS))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_at_the_head_of_a_file_gives_a_count_or_nothing(tmp_path: Path, header: Any) -> None:
    safetensors(tmp_path, header)
    wide = read_wide_bytes(tmp_path)
    assert wide is None or wide >= 0


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": ["F32"], "data_offsets": [0, 4]},
        {"dtype": {}, "data_offsets": [0, 4]},
        {"dtype": "F32", "data_offsets": [0, "4"]},
        {"dtype": "F32", "data_offsets": [4]},
        {"dtype": "F32"},
        ["F32"],
    ],
)
def test_a_tensor_that_is_none_makes_the_whole_unknown(tmp_path: Path, tensor: object) -> None:
    safetensors(tmp_path, {"good": {"dtype": "F32", "data_offsets": [0, 4]}})
    assert read_wide_bytes(tmp_path) == 4
    safetensors(tmp_path, {"good": {"dtype": "F32", "data_offsets": [0, 4]}, "bad": tensor})
    assert read_wide_bytes(tmp_path) is None


@pytest.mark.timeout(10)
def test_fifos_and_indexes_without_end_are_passed_over(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors.index.json")
    os.mkfifo(tmp_path / "model.safetensors")
    assert (read_weights(tmp_path), read_wide_bytes(tmp_path)) == (None, None)
    (tmp_path / "model.safetensors.index.json").unlink()
    with (tmp_path / "model.safetensors.index.json").open("wb") as index:
        index.truncate(3 * GIB)
    assert (read_weights(tmp_path), read_wide_bytes(tmp_path)) == (None, None)
