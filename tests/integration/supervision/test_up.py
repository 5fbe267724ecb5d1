"""`vllm-stack up` in a real terminal: what it shows, and how one, two and three Ctrl-C end everything."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import (
    BIN,
    CHAT,
    FAKE_VLLM,
    REPOSITORY,
    Play,
    Scenario,
    Stack,
    StackFactory,
    ask,
    chat,
    gone,
    run_at_once,
)
from tests.support.polling import throughout, until
from tests.support.processes import is_alive
from tests.support.terminal import CTRL_C, Terminal

END = 20.0  # seconds for an orderly end on a loaded machine
AT_ONCE = 12.0  # and for one that waits for no drain, of 60 s in these tests


def up_in(one: Stack, *words: str) -> Terminal:
    """Render, and type `vllm-stack up` into a terminal."""
    assert one.render() == 0
    return Terminal(
        one.ledger, [BIN / "vllm-stack", "up", "--out", one.layout.out, *words], one.env, one.home
    )


def serving(one: Stack) -> Terminal:
    terminal = up_in(one)
    terminal.until_shown("Serving at", 40)
    return terminal


def assert_orderly(one: Stack, terminal: Terminal) -> None:
    assert "No process of the stack is left" in terminal.shown
    assert "left behind" not in terminal.shown
    assert "Traceback" not in terminal.shown
    assert "SIGKILL" not in one.log("supervisord")
    one.assert_all_gone(0)


def open_stream(one: Stack, tokens: int, delay: float) -> tuple[threading.Thread, list[object]]:
    """Ask for a stream of `tokens` x `delay` seconds; give the client and where its answer will be."""
    answers: list[object] = []

    def client() -> None:
        body = {**chat(tokens=tokens, delay=delay), "stream": True}
        try:
            answers.append(ask(one.door, "POST", CHAT, body, timeout=60))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    until(lambda: json.loads(ask(one.ports[0], path="/load")[1])["server_load"] == 1, 10, "it is in flight")
    return thread, answers


def one_ctrl_c_ends_in_order(stack: StackFactory) -> None:
    """The workers are shown, the address, the stop; an open answer comes to its end; exit code 130."""
    one = stack(workers=2, drain_timeout="15")
    terminal = serving(one)
    assert f"Serving at http://127.0.0.1:{one.door}/v1" in terminal.shown
    for name in one.names:
        assert f"{name}  ready" in terminal.shown
    supervisord = terminal.supervisord()
    assert os.getsid(supervisord.pid) == supervisord.pid, "a Ctrl-C in the terminal would reach it"
    client, answers = open_stream_somewhere(one)
    terminal.type(CTRL_C)
    terminal.until_shown("Stopping: open answers may finish (up to 15 s)", 10)
    assert terminal.wait(40) == 130
    client.join(10)
    status, text = answers[0]  # type: ignore[misc]
    assert (status, text[-14:]) == (200, b"data: [DONE]\n\n")
    assert_orderly(one, terminal)
    assert one.layout.supervisord_out.read_text() == ""


def open_stream_somewhere(one: Stack) -> tuple[threading.Thread, list[object]]:
    answers: list[object] = []
    body = {**chat(tokens=15, delay=0.1), "stream": True}
    client = threading.Thread(target=lambda: answers.append(ask(one.door, "POST", CHAT, body, timeout=60)))
    client.start()

    def load() -> int:
        return sum(json.loads(ask(port, path="/load")[1])["server_load"] for port in one.ports)

    until(lambda: load() == 1, 10, "it is in flight")
    return client, answers


def a_failed_worker_is_shown_and_does_not_end_it(stack: StackFactory) -> None:
    """How it failed, when it starts again, and that it is back; TERM then ends all with exit code 0."""
    one = stack(restart_delay=3)
    terminal = serving(one)
    one.kill(one.tree().server)
    terminal.until_shown("worker-0  failed  vLLM was killed by SIGKILL after", 15)
    terminal.until_shown("worker-0  waiting  starts again in", 20)
    until(lambda: terminal.shown.count("worker-0  ready") == 2, 40, "it is ready again")
    assert terminal.shown.count("Serving at") == 1
    terminal.process.terminate()
    assert terminal.wait(END) == 0
    assert_orderly(one, terminal)


def a_term_or_hup_that_comes_twice_cuts_no_answer(stack: StackFactory) -> None:
    """make passes its TERM on to who had it already; a shell tells of the lost terminal after the kernel."""
    one = stack(drain_timeout="15")
    terminal = serving(one)
    client, answers = open_stream(one, tokens=30, delay=0.1)
    for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
        terminal.process.send_signal(signum)
        terminal.until_shown("Stopping", 10)
    assert terminal.wait(40) == 0
    client.join(10)
    status, text = answers[0]  # type: ignore[misc]
    assert (status, text[-14:]) == (200, b"data: [DONE]\n\n")
    assert "everything now\n" not in terminal.shown.replace("again ends everything now\n", "")
    assert_orderly(one, terminal)


def a_second_ctrl_c_ends_a_worker_that_does_not_stop(stack: StackFactory) -> None:
    """Its server ignores TERM and has 75 s: it is killed at once instead."""
    one = stack(drain_timeout="60")
    one.set_fake(IGNORES_TERM=1)
    terminal = serving(one)
    terminal.type(CTRL_C)
    until(lambda: "told to stop: vLLM has 75 s" in one.log("worker-0"), 20, "the worker was told")
    terminal.type(CTRL_C)
    assert terminal.wait(AT_ONCE) == 130
    assert "Ending everything now" in terminal.shown
    assert "Killing every process" not in terminal.shown
    one.says("worker-0", "killing vLLM")
    assert_orderly(one, terminal)


def a_second_ctrl_c_cuts_open_answers(stack: StackFactory) -> None:
    """Also while the proxy drains and the workers have not been told yet."""
    one = stack(drain_timeout="60")
    terminal = serving(one)
    client, answers = open_stream(one, tokens=500, delay=0.1)
    terminal.type(CTRL_C)
    until(lambda: "waiting for " in one.log("supervisord"), 20, "supervisord stops")
    assert "told to stop" not in one.log("worker-0")
    terminal.type(CTRL_C)
    assert terminal.wait(AT_ONCE) == 130
    client.join(10)
    assert b"[DONE]" not in str(answers).encode()
    assert "Killing every process" not in terminal.shown
    assert_orderly(one, terminal)


def two_ctrl_c_at_once_end_it_at_once(stack: StackFactory) -> None:
    """Even before supervisord has acted on the first."""
    one = stack(drain_timeout="60")
    one.set_fake(IGNORES_TERM=1)
    terminal = serving(one)
    terminal.type(CTRL_C)
    terminal.until_shown("Stopping", 10)
    terminal.type(CTRL_C)
    assert terminal.wait(AT_ONCE) == 130
    assert_orderly(one, terminal)


def frozen(one: Stack) -> tuple[int, ...]:
    """Make an engine that is hard to find, and stop who could end it; give all the worker's processes."""
    tree = one.tree()
    one.ledger.remember()
    for pid in (tree.wrapper, one.pid("proxy")):
        os.kill(pid, signal.SIGSTOP)
    return tree.pids


def a_third_ctrl_c_kills_what_obeys_nothing(stack: StackFactory) -> None:
    """The wrapper and the proxy are frozen; the engine is deaf and in a session of its own."""
    one = stack(drain_timeout="60")
    one.set_fake(SETSID=1, ENGINE_IGNORES_TERM=1)
    terminal = serving(one)
    pids = frozen(one)
    for words in ("Stopping", "Ending everything now", "Killing every process"):
        terminal.type(CTRL_C)
        terminal.until_shown(words, 5)
    assert terminal.wait(AT_ONCE) == 130
    assert gone(*pids)()
    assert "Traceback" not in terminal.shown
    one.assert_all_gone(0)


def what_obeys_no_second_ctrl_c_is_killed_without_a_third(stack: StackFactory) -> None:
    """Nobody has to know that there is one."""
    one = stack(drain_timeout="60")
    terminal = serving(one)
    pids = frozen(one)
    terminal.type(CTRL_C)
    terminal.until_shown("Stopping", 5)
    terminal.type(CTRL_C)
    assert terminal.wait(AT_ONCE + 8) == 130
    assert "Killing every process" in terminal.shown
    assert gone(*pids)()
    one.assert_all_gone(0)


def a_killed_front_end_takes_the_stack_with_it(stack: StackFactory) -> None:
    """By an orderly stop: supervisord gets TERM from the kernel."""
    one = stack(workers=2)
    terminal = serving(one)
    one.kill(terminal.process.pid)
    assert terminal.wait(5) == -signal.SIGKILL
    one.assert_all_gone(END)
    one.says("supervisord", "received SIGTERM")
    assert "SIGKILL" not in one.log("supervisord")


def a_closed_terminal_ends_the_stack(stack: StackFactory) -> None:
    """In order, although nobody can be told."""
    one = stack()
    terminal = serving(one)
    terminal.close()
    assert terminal.wait(END) == 128 + signal.SIGHUP
    assert "SIGKILL" not in one.log("supervisord")
    one.assert_all_gone(0)


def a_held_screen_holds_up_no_stop(stack: StackFactory) -> None:
    """After Ctrl-S the terminal takes no output."""
    one = stack()
    terminal = serving(one)
    terminal.type("\x13")
    one.kill(one.tree().server)
    until(one.failure, 15, "there is something to show")
    terminal.process.terminate()
    assert terminal.wait(END) == 0
    one.assert_all_gone(0)


def a_hup_that_was_to_be_ignored_is_ignored(stack: StackFactory) -> None:
    """As under nohup."""
    one = stack()
    assert one.render() == 0
    script = 'trap "" HUP; exec "$0" up --out "$1"'
    argv = ["sh", "-c", script, BIN / "vllm-stack", one.layout.out]
    terminal = Terminal(one.ledger, argv, one.env, one.home)
    terminal.until_shown("Serving at", 40)
    terminal.process.send_signal(signal.SIGHUP)
    throughout(lambda: "Stopping" not in terminal.shown, 1.5, "it serves on")
    terminal.type(CTRL_C)
    assert terminal.wait(END) == 130
    assert_orderly(one, terminal)


def a_supervisord_that_was_killed_is_told_of_and_nothing_stays(stack: StackFactory) -> None:
    one = stack(workers=2)
    one.set_fake(1, SETSID=1)
    terminal = serving(one)
    one.kill(terminal.supervisord().pid)
    assert terminal.wait(END) == 1
    assert "vllm-stack: supervisord was killed by SIGKILL" in terminal.shown
    assert "Traceback" not in terminal.shown
    one.assert_all_gone(0)


def a_running_stack_is_not_started_again(stack: StackFactory) -> None:
    """One sentence, and it is not disturbed; a stop from elsewhere is told of, and is no failure."""
    one = stack()
    terminal = serving(one)
    tree = one.tree()
    for words in ([], ["--detach"]):
        second = one.vllm_stack("up", *words)
        assert (second.returncode, second.stdout) == (1, "")
        assert second.stderr.count("\n") == 1
        assert "runs already: `vllm-stack down` stops it" in second.stderr
    assert one.tree() == tree
    assert one.vllm_stack("down").returncode == 0
    assert terminal.wait(END) == 0
    assert "supervisord was stopped from elsewhere" in terminal.shown
    assert_orderly(one, terminal)


def a_supervisord_that_cannot_start_is_told_of_in_one_line(stack: StackFactory) -> None:
    """With its own words; and without any stack, with ours."""
    one = stack()
    missing = one.vllm_stack("up")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert "There is no stack in" in missing.stderr
    assert one.render() == 0
    one.layout.supervisord_conf.write_text("[supervisord]\nnodaemon=perhaps\n")
    for words in ([], ["--detach"]):
        begun = time.monotonic()
        result = one.vllm_stack("up", *words)
        assert time.monotonic() - begun < 20
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1, result.stderr
        assert (
            "supervisord ended with exit code 2: Error: not a valid boolean value: 'perhaps'" in result.stderr
        )


def a_detached_stack_runs_on(stack: StackFactory) -> None:
    """It is ready when the command returns, in a session of its own, and `down` ends it."""
    one = stack(workers=2)
    assert one.render() == 0
    result = one.vllm_stack("up", "--detach")
    assert (result.returncode, result.stderr) == (0, ""), result
    assert "Ready after" in result.stdout
    assert one.is_ready()
    pid = one.rpc("getPID")
    assert os.getsid(pid) == pid
    downed = one.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")
    one.assert_all_gone(0)


def a_detached_stack_with_a_failing_worker_runs_on_too(stack: StackFactory) -> None:
    """Exit code 1 and the reason, as from `wait`; or not ready in time."""
    one = stack(workers=2, restart_delay=1)
    one.set_fake(1, EXIT_AT=1.5, EXIT_CODE=3, LOAD_SECONDS=30, START_STDERR="no memory for the model")
    assert one.render() == 0
    result = one.vllm_stack("up", "--detach")
    assert result.returncode == 1
    assert "worker-1 failed: vLLM ended with exit code 3" in result.stderr
    assert one.rpc("getPID")
    assert one.vllm_stack("down").returncode == 0
    late = one.vllm_stack("up", "--detach", "--timeout", "0")
    assert late.returncode == 1
    assert "Not ready after 0 s" in late.stderr
    until(lambda: one.rpc("getPID"), 10, "supervisord runs all the same")
    assert one.vllm_stack("down").returncode == 0


def make_up_ends_in_order_at_ctrl_c(stack: StackFactory) -> None:
    """The terminal tells make, and us, and nobody else; make waits for our end."""
    one = stack()
    options = {k: v for k, v in one.options.items() if k not in ("--out", "--workers", "--device")}
    command = options.pop("--vllm-command")
    argv = ["make", "-C", REPOSITORY, "-o", "install", "up", "MODEL=org/model", "WORKERS=1", "DEVICE=cpu"]
    argv += [f"OUT={one.layout.out}", f"BIN={BIN}", f"VLLM_COMMAND={command}"]
    argv += ["ARGS=" + " ".join(word for pair in options.items() for word in pair)]
    assert FAKE_VLLM.name in command
    terminal = Terminal(one.ledger, argv, one.env, one.home)
    terminal.until_shown("Serving at", 60)
    assert not [p for p in psutil.Process(terminal.process.pid).children() if p.name() in ("sh", "dash")]
    terminal.type(CTRL_C)
    assert terminal.wait(END) != 0
    assert terminal.shown.count("Stopping") == 1
    assert_orderly(one, terminal)


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)


def interrupted(home: Path, offset: float | None) -> None:
    """Type Ctrl-C `offset` seconds after the first line, or (None) as soon as it is no longer fatal."""
    with Stack(home / "out") as one:
        terminal = up_in(one)
        if offset is None:
            terminal.until_blocked(signal.SIGINT)
        else:
            terminal.until_shown("Starting", 20)
            time.sleep(offset)  # the offset is the subject
        terminal.type(CTRL_C)
        assert terminal.wait(END) == 130, terminal.shown
        assert "Traceback" not in terminal.shown + one.log("supervisord")
        assert one.layout.supervisord_out.exists() == (offset is not None)
        one.assert_all_gone(0)


@pytest.mark.timeout(240)
def test_ctrl_c_at_any_moment_of_the_start_ends_everything(tmp_path: Path) -> None:
    """No traceback, exit code 130, nothing left: before supervisord's first word, and after it."""
    offsets = [None, 0.0, 0.1, 0.2, 0.35, 0.5, 0.8, 1.0, 1.1, 1.2, 1.3, 1.5, 1.8, 2.2, 2.7, 3.2]
    cases = {f"{at} s": partial(interrupted, tmp_path / str(at), at) for at in offsets}
    assert run_at_once(cases) == {}


def test_two_ctrl_c_at_the_start_end_everything_too(tmp_path: Path) -> None:
    """The programs that are told may not run yet."""

    def case(offset: float) -> None:
        with Stack(tmp_path / str(offset) / "out", drain_timeout="60") as one:
            one.set_fake(LOAD_SECONDS=60)
            terminal = up_in(one)
            terminal.until_shown("Starting", 20)
            time.sleep(offset)  # the offset is the subject
            terminal.type(CTRL_C)
            terminal.until_shown("Stopping", 10)
            terminal.type(CTRL_C)
            # Where nothing had been started yet, the first one may have ended it already.
            until(
                lambda: "Ending everything now" in terminal.shown or terminal.process.poll() is not None,
                10,
                "it is heeded",
            )
            assert terminal.wait(END) == 130
            assert "Traceback" not in terminal.shown
            one.assert_all_gone(0)

    assert run_at_once({str(at): partial(case, at) for at in (0.0, 0.5, 1.0, 1.2, 1.5, 2.0, 3.0)}) == {}


def test_a_process_that_a_shell_left_to_us_is_not_of_the_stack(stack: StackFactory) -> None:
    """`something & exec vllm-stack up`: it is our child, and none of our business."""
    one = stack()
    assert one.render() == 0
    note = one.home / "other"
    script = f'(trap "" HUP; exec sleep 300) & echo $! >{note}; exec "$0" up --out "$1"'
    argv = ["sh", "-c", script, BIN / "vllm-stack", one.layout.out]
    terminal = Terminal(one.ledger, argv, one.env, one.home)
    terminal.until_shown("Serving at", 40)
    other = int(note.read_text())
    try:
        terminal.type(CTRL_C)
        assert terminal.wait(END) == 130
        assert is_alive(other), (
            "it ignores the terminal, as sh and the trap have it; only we can have ended it"
        )
        assert "Traceback" not in terminal.shown
    finally:
        if is_alive(other):
            os.kill(other, signal.SIGKILL)
