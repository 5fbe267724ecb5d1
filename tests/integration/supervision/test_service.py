"""What the systemd unit says, done as systemd does it: its command, its directory, its few variables."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections import defaultdict
from pathlib import Path

from tests.integration.conftest import Stack, StackFactory
from tests.support.polling import until
from vllm_stack import cli


def rendered(one: Stack) -> dict[str, list[str]]:
    """Render with a unit, and give what it says."""
    words = [word for pair in one.options.items() for word in pair]
    assert cli.run(["render", "org/model", *words, "--systemd"]) == 0
    settings = defaultdict(list)
    for line in one.layout.unit.read_text("utf-8").splitlines():
        name, _, value = line.partition("=")
        settings[name].append(value)
    return settings


def start(one: Stack, settings: dict[str, list[str]]) -> subprocess.Popen[bytes]:
    """Start what systemd would start, in the environment that it would give."""
    words = (shlex.split(value.replace("%%", "%"))[0] for value in settings["Environment"])
    own = dict(word.split("=", 1) for word in words)
    return one.ledger.start(
        shlex.split(settings["ExecStart"][0]),
        env={"HOME": str(one.home), "FAKE_VLLM_CONFIG": one.env["FAKE_VLLM_CONFIG"], **own},
        cwd=Path(settings["WorkingDirectory"][0]),
        log=one.home / "journal",
    )


def test_the_unit_runs_the_stack_and_its_exit_codes_tell_a_stop_from_a_failure(stack: StackFactory) -> None:
    """Restart=on-failure starts again what did not end with 0: neither `down` nor a stop may look so."""
    one = stack()
    settings = rendered(one)
    first = start(one, settings)
    until(lambda: one.layout.socket.exists(), 15, "supervisord listens")
    until(one.is_ready, 30, "the worker is ready")
    assert start(one, settings).wait(15) == 2
    assert one.is_ready()
    assert one.vllm_stack("down").returncode == 0
    assert first.wait(10) == 0

    again = start(one, settings)
    # supervisord listens before it takes signals; a worker that is ready was started after both.
    until(one.is_ready, 30, "the worker is ready")
    os.kill(again.pid, signal.SIGTERM)
    assert again.wait(float(settings["TimeoutStopSec"][0])) == 0
    one.assert_all_gone(0)
