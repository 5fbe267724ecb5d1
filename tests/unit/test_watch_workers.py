"""What is shown of workers that come up: what the wrapper knows better than the proxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.address import TcpAddress
from vllm_stack.commands.stack import PublicDoor, Stack
from vllm_stack.commands.watch_workers import look_at
from vllm_stack.layout import Layout, phase_note
from vllm_stack.records.phase import Phase, write_phase


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    layout = Layout.at(tmp_path / "out")
    layout.state.mkdir(parents=True)
    layout.logs.mkdir()
    door = PublicDoor("http", "127.0.0.1", 8000, False)
    workers = {"worker-0": TcpAddress("127.0.0.1", 5001)}
    models = {"m": ("worker-0",)}
    return Stack(layout, workers, models, (), 9000, 30, door, 30.0, 120.0, {}, {}, {})


@pytest.mark.parametrize(
    ("told", "phase", "shown"),
    [
        ("ready", Phase.STARTING, "ready"),
        ("not listening", Phase.STARTING, "loading"),
        ("stopped", None, "stopped"),
        ("stopped", Phase.STARTING, "loading"),
        ("stopping", Phase.STARTING, "loading"),
        ("stopping", Phase.STOPPING, "stopping"),
        ("ill", Phase.STARTING, "ill"),
        ("stopped", Phase.QUEUED, "queued"),
        ("not listening", Phase.BLOCKED, "blocked"),
    ],
)
def test_a_notice_that_an_earlier_life_left_is_not_shown_of_one_that_starts(
    stack: Stack, told: str, phase: Phase | None, shown: str
) -> None:
    if phase is not None:
        write_phase(phase_note(stack.layout.state, "worker-0"), phase)
    assert look_at({"worker-0": told}, stack, "worker-0").state == shown
