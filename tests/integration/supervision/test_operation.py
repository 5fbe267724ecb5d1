"""A stack comes up, serves, is looked at and goes down, through the commands an operator types."""

from __future__ import annotations

import gc
import json
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import CHAT, Play, Scenario, Stack, StackFactory, ask, chat
from tests.support.polling import until
from tests.support.processes import listeners
from vllm_stack.supervisor_rpc import Supervisor

KEY = "sk-a-client-key-nobody-may-see"


def a_stack_comes_up_serves_and_goes_down_by_its_commands(stack: StackFactory) -> None:
    """render, supervisord, wait, supervisorctl status, requests, down: exit code 0 and nothing left."""
    one = stack(workers=2)
    options = [
        word for pair in one.options.items() for word in pair if word not in ("--out", one.options["--out"])
    ]
    rendered = one.vllm_stack("render", "org/model", *options)
    assert rendered.returncode == 0, rendered.stderr
    assert "supervisord -c" in rendered.stdout
    one.start()
    until(one.answers, 10, "supervisord answers")
    waited = one.vllm_stack("wait", "--timeout", "30")
    assert waited.returncode == 0, waited.stderr
    assert "Ready after" in waited.stdout
    assert ask(one.door)[0] == 200
    assert ask(one.door, "POST", CHAT, chat(tokens=2))[0] == 200
    until(lambda: {one.state(name) for name in (*one.names, "proxy")} == {"RUNNING"}, 5, "all are RUNNING")
    status = one.supervisorctl("status")
    assert status.returncode == 0
    assert [line.split()[:2] for line in status.stdout.splitlines()] == [
        ["proxy", "RUNNING"],
        ["workers:worker-0", "RUNNING"],
        ["workers:worker-1", "RUNNING"],
    ]
    downed = one.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")
    assert "No process of the stack is left" in downed.stdout
    assert "left behind" not in downed.stdout
    assert one.supervisord is not None
    assert one.supervisord.wait(1) == 0
    one.assert_all_gone(0)
    assert "SIGKILL" not in one.log("supervisord")
    assert not one.failure(0)
    again = one.vllm_stack("down")
    assert (again.returncode, again.stderr) == (0, "")


def commands_say_what_is_missing_when_there_is_no_stack(stack: StackFactory) -> None:
    """Exit code 1 and one line: without a render, and with one that was never started."""
    one = stack()
    for verb in ("wait", "down"):
        nothing = one.vllm_stack(verb)
        assert nothing.returncode == 1
        assert "There is no stack in" in nothing.stderr
        assert nothing.stderr.count("\n") == 1
    assert one.render() == 0
    waited = one.vllm_stack("wait", "--timeout", "30")
    assert waited.returncode == 1
    assert "supervisord is not running" in waited.stderr
    assert one.vllm_stack("down").returncode == 0


def wait_ends_with_the_reason_when_a_worker_fails(stack: StackFactory) -> None:
    """Exit code 1, the server's last words, and how it ended."""
    one = stack(workers=2, restart_delay=1)
    one.set_fake(1, EXIT_AT=1.5, EXIT_CODE=3, LOAD_SECONDS=30, START_STDERR="no memory for the model")
    assert one.render() == 0
    one.start()
    until(one.answers, 10, "supervisord answers")
    waited = one.vllm_stack("wait", "--timeout", "20")
    assert waited.returncode == 1
    assert "worker-1 failed: vLLM ended with exit code 3" in waited.stderr
    assert "no memory for the model" in waited.stderr
    any_worker = one.vllm_stack("wait", "--any", "--timeout", "20")
    assert any_worker.returncode == 0, any_worker.stderr


def wait_asks_for_the_workers_that_were_rendered_last(stack: StackFactory) -> None:
    """Until the proxy has started, the workers of the stack before may seem to be the ones that run."""
    one = stack(workers=2).up()
    assert one.vllm_stack("down").returncode == 0
    one.options["--workers"] = "1"
    assert one.render() == 0
    one.start()
    until(one.layout.socket.exists, 10, "supervisord answers")
    before = one.layout.stack_in_force()
    assert before is not None
    assert len(json.loads(before.read_text())["workers"]) == 2
    result = one.vllm_stack("wait", "--timeout", "25")
    assert (result.returncode, result.stdout.splitlines()[-1][-10:]) == (0, ": worker-0"), result


def a_second_supervisord_on_the_same_stack_gives_up_and_disturbs_nothing(stack: StackFactory) -> None:
    """Its programs must not sweep away the living ones as leftovers."""
    one = stack().up()
    tree = one.tree()
    first, second = one.supervisord, one.start().supervisord
    assert second is not None
    assert second.wait(15) != 0
    one.supervisord = first
    assert one.tree() == tree
    assert one.is_ready()
    assert one.vllm_stack("down").returncode == 0


def test_a_stack_in_a_directory_too_deep_for_a_socket_works_all_the_same(
    stack: StackFactory, tmp_path: Path
) -> None:
    """The control socket lies in /tmp then, in a directory that only its owner may enter."""
    one = stack(out=tmp_path / ("deep" * 20) / "out").up()
    assert one.layout.socket.parent.parent == Path("/tmp")  # noqa: S108
    assert stat.S_IMODE(one.layout.socket.parent.stat().st_mode) == 0o700
    assert one.supervisorctl("status").returncode == 0
    assert one.vllm_stack("down").returncode == 0
    one.assert_all_gone(0)
    one.layout.socket.parent.rmdir()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with a client key, started under the usual umask, that has served and failed."""
    home = tmp_path_factory.mktemp("guarded")
    key_file = home / "keys"
    key_file.write_text(KEY + "\n")
    key_file.chmod(0o600)
    before = os.umask(0o022)
    try:
        one = Stack(home / "out", api_key_file=str(key_file), host="127.0.0.1").up()
    finally:
        os.umask(before)
    with one:
        serve_and_fail_once(one)
        yield one


def serve_and_fail_once(one: Stack) -> None:
    assert ask(one.door, "POST", CHAT, chat(), {"authorization": f"Bearer {KEY}"})[0] == 200
    assert ask(one.door, "POST", CHAT, chat(), {"authorization": "Bearer wrong-key"})[0] == 401
    one.kill(one.tree().server)
    until(one.failure, 5, "the failure is recorded")
    until(one.is_ready, 20, "the worker is back")


def test_everything_a_running_stack_writes_is_for_its_owner_alone(guarded: Stack) -> None:
    """Directories 0700, files 0600, the socket 0700.

    The logs and the pid file are supervisord's, which sets no umask in the foreground: they lie in
    directories that nobody else may enter.
    """
    of_supervisord = {guarded.layout.pidfile, *guarded.layout.logs.iterdir()}
    wrong = []
    for path in (guarded.layout.out, *guarded.layout.out.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):  # it has no rights of its own
            continue
        wanted = 0o700 if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode) else 0o600
        if stat.S_IMODE(mode) != wanted and path not in of_supervisord:
            wrong.append(f"{path.relative_to(guarded.layout.out)} {stat.S_IMODE(mode):o}")
    assert not wrong


def test_no_key_shows_in_a_command_line_a_log_or_a_configuration(guarded: Stack) -> None:
    """Neither the clients' key nor the one between the proxy and the workers."""
    keys = {KEY, guarded.layout.internal_key.read_text().strip()}
    shown = {f"argv of {p.pid}": " ".join(p.cmdline()) for p in guarded.processes()}
    for path in (*guarded.layout.out.rglob("*"), guarded.home / "supervisord.out"):
        if path.is_file() and path != guarded.layout.internal_key:
            shown[str(path)] = path.read_text()
    shown["getAllConfigInfo"] = json.dumps(guarded.rpc("getAllConfigInfo"))
    assert len(shown) > 15
    assert [where for where, text in shown.items() if any(key in text for key in keys)] == []


def test_workers_listen_on_loopback_alone_and_ask_for_the_internal_key(guarded: Stack) -> None:
    """Who reaches a worker's port past the proxy is refused."""
    assert listeners(guarded.ports[0]) == [guarded.tree().server]
    assert ask(guarded.ports[0], "POST", CHAT, chat())[0] == 401
    key = guarded.layout.internal_key.read_text().strip()
    assert ask(guarded.ports[0], "POST", CHAT, chat(), {"authorization": f"Bearer {key}"})[0] == 200


def a_stop_order_lets_an_open_answer_end_before_the_workers_go(stack: StackFactory) -> None:
    """The proxy stops first and drains; a stream that is under way then comes to its end."""
    one = stack(workers=1, drain_timeout="6").up()
    answers: list[tuple[int, bytes]] = []
    body = {**chat(tokens=15, delay=0.1), "stream": True}
    client = threading.Thread(target=lambda: answers.append(ask(one.door, "POST", CHAT, body, timeout=20)))
    client.start()
    until(lambda: json.loads(ask(one.ports[0], path="/load")[1])["server_load"] == 1, 5, "it is in flight")
    assert one.vllm_stack("down").returncode == 0
    client.join(10)
    status, text = answers[0]
    assert status == 200
    assert text.endswith(b"data: [DONE]\n\n")
    assert b'"abort"' not in text
    assert b"error" not in text


def down_is_not_held_up_by_a_supervisord_that_nobody_collects(stack: StackFactory) -> None:
    """In a container whose first process does not reap, an ended supervisord stays as a zombie."""
    one = stack()
    assert one.render() == 0
    one.start(reap=False)
    until(one.is_ready, 30, "the worker is ready")
    downed = one.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")


def test_asking_supervisord_leaves_no_socket_open(stack: StackFactory) -> None:
    """A wrapper that lives for weeks must not hold on to the connection of its one question."""
    one = stack()
    assert one.render() == 0
    one.start()
    until(one.answers, 10, "supervisord answers")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert Supervisor(one.layout.socket).pid()
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
