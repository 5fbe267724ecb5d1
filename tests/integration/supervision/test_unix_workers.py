"""`--worker-transport unix` under real supervisord: the sockets' whole life."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import psutil

from tests.integration.conftest import CHAT, Play, Scenario, StackFactory, ask, chat
from tests.support.polling import until


def a_stack_on_unix_sockets_serves_survives_a_kill_and_leaves_no_socket(stack: StackFactory) -> None:
    """The killed server's socket is in the way of the next one until the wrapper has removed it."""
    one = stack(workers=2, worker_transport="unix").up()
    waited = one.vllm_stack("wait", "--timeout", "20")
    assert (waited.returncode, "Ready after" in waited.stdout) == (0, True), waited
    sockets = [where for where in one.ports if isinstance(where, Path)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o700, 0o700]
    tree = one.tree()
    assert psutil.Process(tree.server).net_connections("tcp") == []
    with one.traffic():
        one.kill(tree.server)
        until(lambda: one.failure(0), 5, "the failure is recorded")
        until(lambda: one.is_ready(), 20, "the worker is back")
    one.says("worker-0", "started vLLM on unix:")
    assert one.vllm_stack("down").returncode == 0
    one.assert_all_gone(0)
    assert not any(path.exists() for path in sockets)


def a_socket_left_by_two_kills_at_once_is_removed_at_the_next_start(stack: StackFactory) -> None:
    """With the wrapper dead as well nobody removes the socket before the next wrapper does."""
    one = stack(worker_transport="unix", restart_delay=1).up()
    tree = one.tree()
    one.kill(tree.wrapper)
    until(lambda: one.pid("worker-0") not in (0, tree.wrapper), 5, "supervisord starts the wrapper again")
    until(lambda: one.is_ready() and one.tree().server != tree.server, 20, "the worker is back")


def a_stop_while_it_drains_is_one_term(stack: StackFactory) -> None:
    """The wrapper asks the socket whether the server serves: one that does must drain in peace."""
    one = stack(worker_transport="unix", drain_timeout="15").up()
    body = {**chat(tokens=40, delay=0.1)}
    answers: list[int] = []
    client = threading.Thread(
        target=lambda: answers.append(ask(one.door, "POST", CHAT, body, timeout=20)[0]), daemon=True
    )
    client.start()
    until(lambda: one.tree() and _in_flight(one.ports[0]) == 1, 5, "it is in flight")
    assert one.supervisorctl("restart", "workers:worker-0").returncode == 0
    client.join(10)
    assert answers == [200]


def _in_flight(where: int | Path) -> int:
    return int(json.loads(ask(where, path="/fake/state")[1])["in_flight"])


def a_stack_too_deep_for_a_socket_puts_them_all_into_its_directory_in_tmp(stack: StackFactory) -> None:
    """The rule is that of supervisord's own socket; that directory is left empty."""
    shallow = stack()
    one = stack(out=shallow.home / ("deep" * 20) / "out", worker_transport="unix").up()
    place = one.layout.socket.parent
    assert place.parent == Path("/tmp")  # noqa: S108
    assert one.ports == [place / "worker-0.sock"]
    assert ask(one.door, "POST", CHAT, chat(tokens=1))[0] == 200
    assert one.vllm_stack("down").returncode == 0
    one.assert_all_gone(0)
    place.rmdir()


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
