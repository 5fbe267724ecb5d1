"""How often a worker lived and failed: counted for ever, and no reason to break."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.records.lives import Lives, count_failure, count_start, read_lives


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "worker-0.lives.json"


def test_starts_and_failures_are_counted_each_by_itself(path: Path) -> None:
    assert read_lives(path) == Lives(0, 0)
    for _ in range(3):
        count_start(path)
    count_failure(path)
    assert read_lives(path) == Lives(3, 1)
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"starts": "many"}', '{"starts": -3, "failures": true}', '{"starts": null}']
)
def test_a_damaged_record_begins_at_nothing(path: Path, text: str) -> None:
    path.write_text(text)
    assert read_lives(path) == Lives(0, 0)
    count_failure(path)
    assert read_lives(path) == Lives(0, 1)


def test_a_directory_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        count_start(tmp_path / "gone" / "worker-0.lives.json")
