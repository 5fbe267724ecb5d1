"""`vllm-stack drill` on whole stacks: what it reports, what it leaves, and when it does not begin."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.conftest import BIN, CHAT, Stack, StackFactory, ask, chat
from tests.support.certificates import make_certificate
from tests.support.polling import until
from tests.support.processes import ProcessLedger
from tests.support.unix_http import connection_to

pytestmark = pytest.mark.timeout(400)

# An answer takes a second, so that there is something to cut.
SLOW = {"*": {"tokens": 20, "delay": 0.05}}
TITLED = """
import sys, setproctitle, signal
setproctitle.setproctitle(sys.argv[1])
signal.pause()
"""


def drill(one: Stack, *words: str, yes: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [
        str(BIN / "vllm-stack"),
        "drill",
        "--out",
        str(one.layout.out),
        *(["--yes"] if yes else []),
        *words,
    ]
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=300, check=False, env=one.env, stdin=subprocess.DEVNULL
    )


def slow(one: Stack) -> Stack:
    one.set_fake(SCRIPTS=SLOW)
    return one.up()


def set_in_force(one: Stack, **fields: object) -> None:
    """Change what the running stack says of itself."""
    path = one.layout.stack_in_force()
    assert path is not None
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, **fields}))


def told_of(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    print(done.stdout, done.stderr)
    return {told["drill"]: told for told in json.loads(done.stdout)["drills"]}


def test_a_healthy_stack_of_two_passes_every_drill_that_can_be_held(stack: StackFactory) -> None:
    """The figures are in the JSON; the hang is not drilled where nobody watches for one."""
    one = slow(stack(workers=2, restart_delay=1))
    set_in_force(one, wedge_timeout=0)
    other = one.tree(1)
    done = drill(one, "--json", "--timeout", "60")
    drills = told_of(done)
    assert done.returncode == 0
    assert json.loads(done.stdout)["passed"] is True
    assert json.loads(done.stdout)["worker"] == "worker-0"
    held = {name: told for name, told in drills.items() if name != "hang"}
    assert [told["verdict"] for told in held.values()] == ["passed"] * 4
    for told in held.values():
        assert told["sent"] == told["whole"] + told["failed"] + told["cut"] + told["unfinished"]
        assert told["whole"] > 0
        assert told["cut_silently"] == 0
        assert told["left_over"] == []
        assert told["ready_again"] > 0
        assert told["routed_around"] is not None
    assert held["api-server"]["ready_again"] > 1
    assert drills["hang"]["verdict"] == "skipped"
    assert "The wedge watch is off" in drills["hang"]["reasons"][0]
    assert one.tree(1) == other
    assert "kill -9 the API server of worker-0" in done.stderr


def test_with_one_worker_the_report_says_that_there_was_nowhere_else_to_go(stack: StackFactory) -> None:
    """As a table; and the worker that was named is the one."""
    one = slow(stack(restart_delay=1))
    server = one.tree().server
    done = drill(one, "--only", "api-server", "--worker", "worker-0", "--clients", "2", "--timeout", "60")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    head, line, *_ = done.stdout.splitlines()
    assert head.startswith("drill")
    assert "ready again  left over" in head
    assert line.startswith("api-server  passed")
    assert "not possible: one worker" in line
    assert one.tree().server != server


def test_a_drained_worker_has_no_part_in_a_drill_and_is_not_waited_for(stack: StackFactory) -> None:
    one = slow(stack(workers=2, restart_delay=1))
    assert one.vllm_stack("drain", "worker-0").returncode == 0
    refused = drill(one, "--only", "engine", "--worker", "worker-0")
    assert refused.returncode == 2
    assert "--worker worker-0 is drained" in refused.stderr
    done = drill(one, "--only", "proxy", "--json", "--timeout", "60")
    drills = told_of(done)
    assert done.returncode == 0
    assert json.loads(done.stdout)["worker"] == "worker-1"
    assert drills["proxy"]["verdict"] == "passed"
    assert "worker-0: drained" in done.stderr


def test_a_door_with_tls_and_a_key_is_drilled_with_the_key_of_a_file(
    stack: StackFactory, tmp_path: Path
) -> None:
    files = make_certificate(tmp_path)
    key = tmp_path / "key"
    key.write_text("sk-drill\n")
    key.chmod(0o600)
    one = slow(
        stack(
            tls_cert=str(files.certificate), tls_key=str(files.key), api_key_file=str(key), host="127.0.0.1"
        )
    )
    refused = drill(one, "--only", "proxy")
    assert refused.returncode == 2
    assert "--api-key-file" in refused.stderr
    done = drill(one, "--only", "proxy", "--api-key-file", str(key), "--json", "--timeout", "60")
    told = told_of(done)["proxy"]
    assert (done.returncode, told["verdict"]) == (0, "passed")
    assert told["cut"] == 0


def test_a_process_that_is_left_over_fails_the_drill_and_is_named(
    stack: StackFactory, tmp_path: Path
) -> None:
    """It bears the worker's title, and came when the next life had swept: in the tree of neither."""
    one = slow(stack(restart_delay=1))
    one.set_fake(LOAD_SECONDS=6)
    title = f"{one.layout.process_title('worker-0')}::EngineCore"
    argv = [str(BIN / "vllm-stack"), "drill", "--out", str(one.layout.out), "--yes", "--only", "api-server"]
    with (
        ProcessLedger(tmp_path / "leftover") as ledger,
        subprocess.Popen([*argv, "--json"], stdout=subprocess.PIPE, env=one.env, text=True) as running,
    ):
        until(lambda: one.log("worker-0").count("started vLLM") == 2, 60, "the next life has begun")
        leftover = ledger.start([sys.executable, "-c", TITLED, title]).pid
        stdout, _ = running.communicate(timeout=200)
        told = json.loads(stdout)["drills"][0]
        print(told)
        assert running.returncode == 1
        assert told["verdict"] == "failed"
        assert [left["pid"] for left in told["left_over"]] == [leftover]
        assert "1 process left over" in told["reasons"][0]


def test_ctrl_c_lets_a_stopped_engine_run_again(stack: StackFactory) -> None:
    """As if a watch were on: the drill waits for what never comes, until it is interrupted."""
    one = slow(stack(workers=2, restart_delay=1))
    set_in_force(one, wedge_timeout=300)
    tree = one.tree()
    engine = psutil.Process(tree.engine)
    argv = [str(BIN / "vllm-stack"), "drill", "--out", str(one.layout.out), "--yes", "--only", "hang"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=one.env) as running:
        until(lambda: engine.status() == psutil.STATUS_STOPPED, 60, "the engine is stopped")
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)
    assert running.returncode == 130
    assert engine.status() != psutil.STATUS_STOPPED
    assert one.tree() == tree


def test_nothing_is_touched_that_nobody_said_yes_to_and_what_cannot_be_drilled_is_said(
    stack: StackFactory,
) -> None:
    """Without a terminal there is nobody to ask."""
    one = stack(workers=1, restart_delay=1)
    assert one.render() == 0

    def refused(code: int, *words: str, yes: bool = True) -> str:
        done = drill(one, *words, yes=yes)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "is not running" in refused(1)
    one.set_fake(LOAD_SECONDS=60)
    one.start()
    until(lambda: one.workers_seen() != {}, 30, "the proxy answers")
    assert "No worker of the stack" in refused(1)
    one.set_fake(LOAD_SECONDS=0.2)
    one.supervisorctl("restart", "workers:worker-0")
    until(one.is_ready, 30, "it is ready")
    tree = one.tree()
    assert "--yes" in refused(2, yes=False)
    assert "worker-0" in refused(2, "--worker", "worker-7")
    assert "bogus" in refused(2, "--only", "bogus")
    assert one.tree() == tree
    with contextlib.closing(connection_to(one.door, 10)) as other:
        other.request("POST", CHAT, json.dumps(chat(hang=True)), {"content-type": "application/json"})
        until(lambda: in_flight(one) == 1, 10, "a request of somebody else is in flight")
        assert "which serves other traffic now (1 request in flight)" in answered_no(one)
        # The sentence that would be the question comes without one, too; and the hang is skipped here.
        set_in_force(one, wedge_timeout=0)
        skipped = drill(one, "--only", "hang")
    assert skipped.returncode == 1
    assert "which serves other traffic now" in skipped.stderr
    assert "No drill was held" in skipped.stderr
    assert one.tree() == tree


def in_flight(one: Stack) -> int:
    workers = json.loads(ask(one.admin, path="/workers")[1])["workers"]
    return sum(worker["in_flight"] for worker in workers)


def answered_no(one: Stack) -> str:
    """Drill at a terminal where somebody says no; gives what was asked."""
    terminal, ours = pty.openpty()
    argv = [str(BIN / "vllm-stack"), "drill", "--out", str(one.layout.out)]
    try:
        os.write(terminal, b"n\n")
        done = subprocess.run(
            argv, stdin=ours, capture_output=True, text=True, timeout=60, check=False, env=one.env
        )
    finally:
        os.close(terminal)
        os.close(ours)
    assert done.returncode == 1
    assert "Go on? [y/N]" in done.stderr
    assert "Nothing was touched" in done.stderr
    return done.stderr
