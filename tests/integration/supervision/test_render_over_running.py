"""A render into the directory of a running stack changes nothing in it until supervisord is told."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import CHAT, Play, Scenario, Stack, StackFactory, ask, chat, gone
from tests.support.polling import until
from tests.support.ports import free_ports
from vllm_stack.commands.stack import find_stack


def rendered(one: Stack) -> dict[str, bytes]:
    """Give the bytes of every file that a render writes."""
    files = [path for path in one.layout.out.iterdir() if path.is_file()]
    return {str(path): path.read_bytes() for path in (*files, *one.layout.secrets.iterdir())}


def other_options(one: Stack) -> tuple[dict[str, str], list[int]]:
    ports = free_ports(len(one.ports) + 3)
    changed = {
        "workers": str(len(one.ports) + 1),
        "base_port": str(ports[0]),
        "port": str(ports[-2]),
        "admin_port": str(ports[-1]),
    }
    return changed, ports


def argv_of(port: int) -> list[str]:
    argv: list[str] = json.loads(ask(port, path="/fake/state")[1])["argv"]
    return argv


def the_same_options_give_the_same_bytes_and_disturb_nothing(stack: StackFactory) -> None:
    """The internal key is kept: the running workers ask for it."""
    one = stack().up()
    tree, before = one.tree(), rendered(one)
    assert one.render() == 0
    assert rendered(one) == before
    assert one.supervisorctl("update").stdout == ""
    assert one.tree() == tree
    assert ask(one.door, "POST", CHAT, chat())[0] == 200


def other_options_are_for_the_next_start(stack: StackFactory) -> None:
    """A crashed worker and a crashed proxy come back with the old ones; down stops it all the same."""
    one = stack(restart_delay=1).up()
    tree, master = one.tree(), one.pid("proxy")
    changed, ports = other_options(one)
    assert one.render(**changed, drain_timeout="3") == 0
    assert ask(one.door, "POST", CHAT, chat())[0] == 200
    one.kill(tree.server)
    one.kill(master)
    until(lambda: one.is_ready() and one.tree().server != tree.server, 20, "both are back on the old ports")
    argv = argv_of(one.ports[0])
    assert argv[argv.index("--shutdown-timeout") + 1] == "1"
    assert ask(one.door, "POST", CHAT, chat())[0] == 200
    downed = one.vllm_stack("down")
    assert (downed.returncode, downed.stderr) == (0, "")
    one.assert_all_gone(0)

    one.start()
    until(lambda: ask(ports[-2])[0] == 200, 20, "the new door serves")
    until(lambda: all(ask(port)[0] == 200 for port in ports[:-3]), 20, "the new workers serve")
    argv = argv_of(ports[0])
    assert argv[argv.index("--shutdown-timeout") + 1] == "3"
    with pytest.raises(OSError, match="refused"):
        ask(one.door)


def update_takes_the_new_options(stack: StackFactory) -> None:
    """The old trees are gone, the new ones serve, supervisord itself stays."""
    one = stack(restart_delay=1).up()
    tree = one.tree()
    changed, ports = other_options(one)
    assert one.render(**changed) == 0
    assert one.supervisorctl("update").returncode == 0
    until(gone(*tree.pids), 5, "the old tree is gone")
    until(lambda: ask(ports[-2])[0] == 200, 20, "the new door serves")
    until(lambda: all(ask(port)[0] == 200 for port in ports[:-3]), 20, "the new workers serve")
    assert one.supervisord is not None
    assert one.supervisord.poll() is None
    assert one.vllm_stack("down").returncode == 0
    one.assert_all_gone(0)


def a_render_can_be_taken_back_while_the_stack_runs(stack: StackFactory) -> None:
    """The ports the stack holds are its own, whatever was rendered in between."""
    one = stack(restart_delay=1).up()
    before = rendered(one)
    changed, _ = other_options(one)
    assert one.render(**changed) == 0
    assert one.render() == 0, "the running stack's own ports were called taken"
    assert rendered(one) == before


def wait_looks_at_the_stack_that_runs(stack: StackFactory) -> None:
    """After a render for later, the running stack is still ready."""
    one = stack(restart_delay=1).up()
    changed, _ = other_options(one)
    assert one.render(**changed) == 0
    waited = one.vllm_stack("wait", "--timeout", "5")
    assert waited.returncode == 0, waited.stderr


def test_a_crashed_proxy_asks_for_the_keys_it_was_started_with(stack: StackFactory, tmp_path: Path) -> None:
    """A render without keys must not open the door of a running stack that asks for one."""
    keys = tmp_path / "keys"
    keys.write_text("sk-one\n")
    keys.chmod(0o600)
    one = stack(restart_delay=1, api_key_file=str(keys), host="0.0.0.0").up()
    assert ask(one.door, "POST", CHAT, chat())[0] == 401
    del one.options["--api-key-file"]
    assert one.render(host="127.0.0.1") == 0
    master = one.pid("proxy")
    old = [master, *(child.pid for child in psutil.Process(master).children())]
    one.kill(master)
    until(gone(*old), 5, "the old proxy is gone")
    until(one.is_ready, 15, "a new proxy serves")
    assert ask(one.door, "POST", CHAT, chat())[0] == 401
    assert ask(one.door, "POST", CHAT, chat(), {"authorization": "Bearer sk-one"})[0] == 200


def down_waits_as_long_as_the_running_stack_was_promised(stack: StackFactory) -> None:
    """A shorter drain rendered meanwhile must not make it give up on the longer one."""
    one = stack(restart_delay=1, drain_timeout="60").up()
    assert one.render(drain_timeout="0") == 0
    # 60 s of drain cannot be waited for in a test: what counts is which limit down goes by.
    assert find_stack(one.layout.out).stop_seconds >= 60 + 60


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
