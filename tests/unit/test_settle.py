"""A start after a failure outlasts supervisord's startsecs, or supervisord's own pauses grow."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from vllm_stack.address import TcpAddress
from vllm_stack.worker import life
from vllm_stack.worker.failure import boot_clock, record_failure
from vllm_stack.worker.spec import Spec


def spec(state: Path, delay: float) -> Spec:
    return Spec(
        name="worker-0",
        address=TcpAddress("127.0.0.1", 5001),
        argv=("vllm",),
        env={},
        secret_env={},
        box=state,
        state=state,
        title="vllm-stack:out:worker-0",
        restart_delay=delay,
        settle=max(1.0, delay) + 0.5,
        stop_grace=30.0,
    )


GROWS = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="after supervisord's pause a delay of 1 s or less is over, nothing is waited for, and a start "
    "that fails within startsecs is never booked as good: the pauses grow to 2, 3, 4, ... s",
)


@pytest.mark.parametrize(
    "delay", [*(pytest.param(delay, marks=GROWS) for delay in (0.0, 0.5, 1.0)), 2.0, 30.0]
)
def test_a_start_after_supervisords_own_pause_of_a_second_still_settles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    """The first pause of supervisord after a start that failed within startsecs is one second."""
    waits: list[float] = []

    def take_signal(timeout: float) -> int:
        waits.append(timeout)
        return signal.SIGTERM

    at = boot_clock()
    told = spec(tmp_path, delay)
    record_failure(told.failure, 1, 0.1)
    monkeypatch.setattr("vllm_stack.worker.failure.boot_clock", lambda: at + 1.05)
    monkeypatch.setattr(life, "take_signal", take_signal)
    life.Life(told, {})._wait_out_last_failure()
    assert waits, "the start waits for nothing"
    assert waits[0] >= told.settle - 0.5
