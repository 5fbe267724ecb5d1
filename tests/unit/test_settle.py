"""A start after a failure outlasts supervisord's startsecs, or supervisord's own pauses grow."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from vllm_stack.address import TcpAddress
from vllm_stack.worker import preparation
from vllm_stack.worker.autopsy import Autopsy
from vllm_stack.worker.failure import boot_clock, new_failure, record_failure
from vllm_stack.worker.liveness import Limits
from vllm_stack.worker.preparation import Preparation
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.turn import Stagger, Turn
from vllm_stack.worker.voice import Voice


def spec(state: Path, delay: float) -> Spec:
    return Spec(
        name="worker-0",
        address=TcpAddress("127.0.0.1", 5001),
        argv=("vllm",),
        env={},
        secret_env={},
        box=state,
        state=state,
        log=state / "worker-0.log",
        evidence=state,
        title="vllm-stack:out:worker-0",
        gpus=(),
        cores=(),
        admin_port=9000,
        gpu_patience=0.0,
        restart_delay=delay,
        restart_delay_max=0.0,
        settle=max(1.0, delay) + 0.5,
        stop_grace=30.0,
        limits=Limits(0.0, 0.0),
        stagger=Stagger("none", ""),
    )


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 2.0, 30.0])
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
    record_failure(told.failure, new_failure(1, 0.1, "starting"))
    monkeypatch.setattr("vllm_stack.worker.failure.boot_clock", lambda: at + 1.05)
    monkeypatch.setattr(preparation, "take_signal", take_signal)
    voice = Voice("worker-0")
    turn = Turn(told.stagger, tmp_path, "worker-0")
    Preparation(told, voice, Autopsy(told, voice), turn)._wait_out_last_failure()
    assert waits, "the start waits for nothing"
    assert waits[0] >= told.settle - 0.5
