"""The wrapper by itself, without supervisord: every phase of its life is stopped, or broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.conftest import Stack, StackFactory, ask, gone
from tests.support.polling import until
from vllm_stack.layout import lives_record
from vllm_stack.records.lives import Lives, read_lives


@dataclass
class Wrapped:
    """A wrapper started as supervisord starts it, and the stack it belongs to."""

    stack: Stack
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.stack.home / "wrapper.log").read_text()

    def seen(self) -> dict[str, int]:
        told: dict[str, int] = json.loads(ask(self.stack.ports[0], path="/fake/state")[1])
        return told

    def again(self) -> None:
        self.process = start_wrapper(self.stack)


def start_wrapper(one: Stack) -> subprocess.Popen[bytes]:
    argv: list[str | Path] = [
        sys.executable,
        "-P",
        "-m",
        "vllm_stack.worker",
        one.layout.worker_json("worker-0"),
    ]
    return one.ledger.start(argv, env=one.env, log=one.home / "wrapper.log")


@pytest.fixture
def wrapped(stack: StackFactory, request: pytest.FixtureRequest) -> Wrapped:
    one = stack(restart_delay=30, log_starts=True)
    assert one.render() == 0
    spec = json.loads(one.layout.worker_json("worker-0").read_text())
    one.layout.worker_json("worker-0").write_text(json.dumps(spec | {"stop_grace": 1.5}))
    one.set_fake(**getattr(request, "param", {}))
    return Wrapped(one, start_wrapper(one))


def loaded(wrapped: Wrapped) -> dict[str, int]:
    return until(wrapped.seen, 15, "the fake serves")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_ends_the_tree_and_is_no_failure(wrapped: Wrapped, signum: int) -> None:
    told = loaded(wrapped)
    wrapped.process.send_signal(signum)
    assert wrapped.process.wait(6) == 0
    assert gone(told["pid"], told["engine_pid"], told["worker_pid"])()
    assert wrapped.stack.failure() == {}
    assert wrapped.log.rstrip().endswith("stopped")


@pytest.mark.parametrize("wrapped", [{"LOAD_SECONDS": 60}], indirect=True)
def test_a_stop_signal_during_the_load_ends_the_tree(wrapped: Wrapped) -> None:
    until(
        lambda: any("EngineCore" in p.cmdline()[0] for p in wrapped.stack.processes()), 10, "the engine loads"
    )
    wrapped.process.send_signal(signal.SIGQUIT)
    assert wrapped.process.wait(6) == 0
    wrapped.stack.assert_all_gone(0)


@pytest.mark.parametrize("wrapped", [{"IGNORES_TERM": 1}], indirect=True)
def test_a_server_deaf_to_term_is_killed_after_the_grace(wrapped: Wrapped) -> None:
    """And that is still a stop, not a failure."""
    told = loaded(wrapped)
    begun = time.monotonic()
    wrapped.process.terminate()
    assert wrapped.process.wait(8) == 0
    assert time.monotonic() - begun >= 1.5
    assert "did not stop in time" in wrapped.log
    assert gone(told["pid"], told["engine_pid"], told["worker_pid"])()
    assert wrapped.stack.failure() == {}


@pytest.mark.parametrize("wrapped", [{"IGNORES_TERM": 1}], indirect=True)
def test_a_second_term_kills_a_deaf_server_at_once(wrapped: Wrapped) -> None:
    told = loaded(wrapped)
    wrapped.process.terminate()
    until(lambda: "told to stop" in wrapped.log, 3, "the first is heeded")
    begun = time.monotonic()
    wrapped.process.terminate()
    until(gone(told["pid"]), 1.2, "the server is killed")
    assert wrapped.process.wait(5) == 0
    assert time.monotonic() - begun < 3
    assert wrapped.stack.failure() == {}


def test_hup_goes_to_the_server_and_ends_nothing_else(wrapped: Wrapped) -> None:
    """The server's own end by it is a failure; the wrapper itself never dies of a HUP."""
    told = loaded(wrapped)
    wrapped.process.send_signal(signal.SIGHUP)
    assert wrapped.process.wait(6) == 128 + signal.SIGHUP
    assert wrapped.stack.failure()["returncode"] == -signal.SIGHUP
    assert gone(told["engine_pid"], told["worker_pid"])()


@pytest.mark.parametrize(
    ("wrapped", "code", "recorded"),
    [
        ({"EXIT_AT": 0, "EXIT_CODE": 0}, 70, 0),
        ({"EXIT_AT": 0, "EXIT_CODE": 3}, 3, 3),
        ({"EXIT_AT": 0, "EXIT_CODE": -9}, 137, -9),
        ({"EXIT_AT": 0.05, "EXIT_CODE": 1, "LOAD_SECONDS": 30, "LEAVE_ENGINE": 1}, 1, 1),
    ],
    indirect=["wrapped"],
)
def test_an_end_nobody_asked_for_is_recorded_and_never_exit_code_0(
    wrapped: Wrapped, code: int, recorded: int
) -> None:
    assert wrapped.process.wait(15) == code
    assert wrapped.stack.failure()["returncode"] == recorded
    wrapped.stack.assert_all_gone(0)


def test_the_next_life_waits_out_the_failure_and_a_stop_ends_the_wait(wrapped: Wrapped) -> None:
    told = loaded(wrapped)
    os.kill(told["pid"], signal.SIGKILL)
    assert wrapped.process.wait(8) == 137
    wrapped.again()
    until(lambda: "starting it again in" in wrapped.log, 5, "it waits")
    begun = time.monotonic()
    wrapped.process.terminate()
    assert wrapped.process.wait(2) == 0
    assert time.monotonic() - begun < 1
    assert wrapped.stack.failure() == {}
    assert len(wrapped.stack.starts()) == 1
    assert read_lives(lives_record(wrapped.stack.layout.state, "worker-0")) == Lives(starts=1, failures=1)


@pytest.mark.parametrize("wrapped", [{"SETSID": 1, "ENGINE_IGNORES_TERM": 1}], indirect=True)
def test_the_tree_is_ended_also_when_the_failure_cannot_be_recorded(wrapped: Wrapped) -> None:
    """A full disk must not leave an engine with the GPU's memory; a directory stands in for it."""
    told = loaded(wrapped)
    state = wrapped.stack.layout.state
    (state / "worker-0.failure.json").mkdir()
    lives_record(state, "worker-0").unlink()
    lives_record(state, "worker-0").mkdir()
    os.kill(told["pid"], signal.SIGKILL)
    assert wrapped.process.wait(10) != 0
    assert gone(told["engine_pid"], told["worker_pid"])()
    assert "Traceback" not in wrapped.log


def test_a_worker_starts_also_when_its_life_cannot_be_recorded(wrapped: Wrapped) -> None:
    """A full disk is no reason to serve nobody."""
    loaded(wrapped)
    wrapped.process.terminate()
    assert wrapped.process.wait(6) == 0
    life = wrapped.stack.layout.state / "worker-0.life.json"
    assert not life.exists()  # an ended life takes its note back
    (life / "in the way").mkdir(parents=True)
    wrapped.again()
    until(lambda: ask(wrapped.stack.ports[0])[0] == 200, 10, "it serves")
    assert "Traceback" not in wrapped.log
    assert read_lives(lives_record(wrapped.stack.layout.state, "worker-0")) == Lives(starts=2, failures=0)


def test_a_spec_that_cannot_be_read_is_one_line(wrapped: Wrapped) -> None:
    loaded(wrapped)
    wrapped.process.terminate()
    assert wrapped.process.wait(6) == 0
    wrapped.stack.layout.worker_json("worker-0").write_text("{")
    wrapped.again()
    assert wrapped.process.wait(6) == 1
    assert "is not a worker that this version rendered" in wrapped.log
    assert "Traceback" not in wrapped.log


@pytest.mark.parametrize(
    ("given", "interface"), [({}, "lo"), ({"GLOO_SOCKET_IFNAME": "eth1"}, "eth1")], ids=["usual", "chosen"]
)
def test_the_server_gets_a_clean_environment(
    stack: StackFactory, given: dict[str, str], interface: str
) -> None:
    """The key and the title are set; development mode and the operator's own keys are not passed on."""
    leaky = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_STACK_API_KEY": "sk-x", "VLLM_API_KEY": "sk-y"}
    one = stack(env=leaky | given)
    assert one.render() == 0
    wrapper = start_wrapper(one)
    told = json.loads(until(lambda: ask(one.ports[0], path="/fake/state")[1], 15, "the fake serves"))
    assert not {"VLLM_SERVER_DEV_MODE", "VLLM_STACK_API_KEY"} & set(told["env_names"])
    assert told["env"]["VLLM_API_KEY"] == one.layout.internal_key.read_text().strip()
    assert told["env"]["GLOO_SOCKET_IFNAME"] == interface
    assert told["cwd"] == str(one.layout.box("worker-0"))
    wrapper.terminate()
    assert wrapper.wait(6) == 0
