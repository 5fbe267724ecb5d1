"""Named keys over two processes of a running proxy: made, limited, rotated and ended without a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.sync.client import connect

from tests.integration.proxy.harness import CHAT, HOST, Answer, Stack, Wire, chat, get_json, request
from tests.support import fake_realtime
from tests.support.polling import until
from vllm_stack import cli
from vllm_stack.commands import proxy_keys

Make = Callable[..., Stack]
SHORT = chat(tokens=1)
# An answer that has begun, and does not go on.
HOLD = chat(stream=True, tokens=1, hang=2)


class Verb:
    """`vllm-stack keys` on one stack, in this process."""

    def __init__(self, stack: Stack, capfd: pytest.CaptureFixture[str]) -> None:
        self._stack, self._capfd = stack, capfd
        self.said = ""

    def __call__(self, verb: str, *words: str, code: int = 0) -> Any:
        """Run it with --json and give what it prints; what it says beside is `said`."""
        self._capfd.readouterr()
        done = cli.run(["keys", verb, *words, "--out", str(self._stack.out), "--json"])
        out, self.said = self._capfd.readouterr()
        assert done == code, self.said
        return json.loads(out)

    def add(self, *words: str) -> str:
        added = self("add", *words)
        assert added["proxy"] == "taken"
        key: str = added["key"]
        return key

    def used(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(key for key in self("list")["keys"] if key["name"] == name)
        return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that takes any key until the first one is made."""
    options: dict[str, Any] = {"workers": 1, "api_keys": (), "proxy_processes": 2}
    with Stack(tmp_path_factory.mktemp("keys"), **options) as stack:
        yield stack.start()


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    yield shared
    shared.wait_quiet()
    shared.check_log()


@pytest.fixture
def keys(stack: Stack, capfd: pytest.CaptureFixture[str]) -> Verb:
    return Verb(stack, capfd)


@pytest.fixture
def wires() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def processes(stack: Stack) -> list[psutil.Process]:
    return psutil.Process(stack.proxy.pid).children()


def asks(stack: Stack, key: str | None, count: int = 8, body: dict[str, Any] = SHORT) -> list[Answer]:
    """Ask on so many connections, which both processes get some of."""
    return [stack.ask(request(body=body, key=key)) for _ in range(count)]


def status(wire: Wire, key: str | None, **headers: str) -> int:
    return wire.send(request(body=SHORT, key=key, **headers)).answer().status


def in_flight(stack: Stack) -> dict[str, int]:
    return {key["name"]: key["in_flight"] for key in get_json(stack.admin_port, "/keys")["keys"]}


def test_an_open_stack_asks_for_keys_with_the_first_and_never_opens_again(
    stack: Stack, keys: Verb, wires: ExitStack
) -> None:
    before = processes(stack)
    kept = [wires.enter_context(stack.wire()) for _ in range(6)]
    assert {status(wire, "anything") for wire in kept} == {200}

    key = keys.add("alice")
    assert "the door asks for one" in keys.said
    assert "127.0.0.1" in keys.said
    assert {status(wire, "anything") for wire in kept} == {401}
    assert {status(wire, key) for wire in kept} == {200}
    assert {status(wire, None, x_api_key=key) for wire in kept} == {200}
    assert {answer.status for answer in asks(stack, None)} == {401}

    stream = wires.enter_context(stack.wire(timeout=20)).send(
        request(body=chat(stream=True, tokens=25, delay=0.1), key=key)
    )
    assert stream.head().status == 200
    keys("revoke", "alice")
    assert "refuses everyone" in keys.said
    assert {status(wire, key) for wire in kept} == {401}
    chunks = list(stream.chunks())
    assert chunks[-1] is not None
    assert b"[DONE]" in chunks[-1]

    (stack.out / "secrets/keys.json").unlink()
    stack_log = lambda: stack.log.read_text().count("keys.json is gone")  # noqa: E731
    until(lambda: stack_log() == 2, 10, "both processes miss the file")
    assert {answer.status for answer in asks(stack, key)} == {401}
    assert keys.add("bob")
    assert processes(stack) == before


def test_a_rotated_key_holds_beside_the_new_one_for_its_grace(stack: Stack, keys: Verb) -> None:
    old = keys.add("carol", "--concurrent", "3")
    new = keys("rotate", "carol", "--grace", "1h")["key"]
    assert {answer.status for key in (old, new) for answer in asks(stack, key, 4)} == {200}
    newest = keys("rotate", "carol", "--grace", "0s")["key"]
    assert [asks(stack, key, 1)[0].status for key in (old, new, newest)] == [401, 401, 200]
    used = keys.used("carol")
    assert (used["requests"], used["concurrent"]) == (9, 3)


def test_a_limit_at_a_time_holds_over_processes_for_streams_uploads_and_all(
    stack: Stack, keys: Verb, wires: ExitStack
) -> None:
    key = keys.add("erin", "--concurrent", "3")
    held = [wires.enter_context(stack.wire(timeout=20)) for _ in range(2)]
    assert {wire.send(request(body=HOLD, key=key)).head().status for wire in held} == {200}
    # The third is one whose body does not come.
    upload = wires.enter_context(stack.wire())
    upload.send(request(body=b"x" * 10, key=key)[:-5])
    until(lambda: in_flight(stack)["erin"] == 3, 5, "three are in flight")

    answers = asks(stack, key, 10)
    assert {answer.status for answer in answers} == {429}
    assert {answer.error["code"] for answer in answers} == {"rate_limit_exceeded"}
    assert {answer.error["type"] for answer in answers} == {"rate_limit_error"}
    assert {answer.header("retry-after") for answer in answers} == {"1"}
    with stack.wire() as wire:  # a refusal does not cost the connection
        assert status(wire, key) == 429
        assert wire.goes_on()

    for wire in (upload, held.pop()):
        wire.sock.close()
    until(lambda: in_flight(stack)["erin"] == 1, 5, "the upload and a stream have ended")
    assert {answer.status for answer in asks(stack, key, 4)} == {200}
    held.pop().sock.close()
    until(lambda: in_flight(stack)["erin"] == 0, 5, "nothing is in flight")
    assert keys.used("erin")["limited"] == 11


def test_what_a_killed_process_had_in_flight_is_free_again(
    stack: Stack, keys: Verb, wires: ExitStack
) -> None:
    key = keys.add("frank", "--concurrent", "4")
    for _ in range(4):
        wire = wires.enter_context(stack.wire(timeout=20))
        assert wire.send(request(body=HOLD, key=key)).head().status == 200
    assert asks(stack, key, 1)[0].status == 429
    for process in processes(stack):
        process.kill()
    until(lambda: in_flight(stack)["frank"] == 0, 10, "all is free")
    # Its requests are not forgotten, and the processes that follow take the same keys.
    until(lambda: {answer.status for answer in asks(stack, key, 4)} == {200}, 10, "it serves again")
    assert keys.used("frank")["requests"] >= 8
    assert keys.used("frank")["limited"] == 1
    stack.wait_ready()


def test_a_limit_by_the_minute_holds_over_processes(stack: Stack, keys: Verb) -> None:
    key = keys.add("grace", "--requests-per-minute", "7")
    answers = asks(stack, key, 20)
    assert sorted(answer.status for answer in answers) == [200] * 7 + [429] * 13
    refused = [answer for answer in answers if answer.status == 429]
    assert all(1 <= int(answer.header("retry-after") or 0) <= 61 for answer in refused)
    assert {answer.header("x-ratelimit-limit-requests") for answer in refused} == {"7"}
    assert {answer.header("x-ratelimit-remaining-requests") for answer in refused} == {"0"}


def test_the_admin_door_shows_names_and_counts_and_no_digest(stack: Stack, keys: Verb) -> None:
    added = keys("add", "heidi")
    shown = get_json(stack.admin_port, "/keys")
    assert shown["required"] is True
    assert len(set(shown["generations"])) == 1
    assert {"name": "heidi", "requests": 0, "limited": 0, "in_flight": 0} in shown["keys"]
    assert added["digest"] not in json.dumps(shown)


def test_a_verb_says_when_a_process_does_not_take_the_change(
    stack: Stack, keys: Verb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy_keys, "PATIENCE", 0.5)
    monkeypatch.setattr(proxy_keys, "_TIMEOUT", 0.3)
    stopped = processes(stack)[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    try:
        added = keys("add", "ivan", code=1)
        assert "did not take that" in keys.said
        assert added["key"]
        assert added["proxy"] == "late"
    finally:
        os.kill(stopped.pid, signal.SIGCONT)
    until(lambda: {a.status for a in asks(stack, added["key"])} == {200}, 10, "it takes it when it goes on")


def test_a_websocket_counts_for_as_long_as_it_is_open(new_stack: Make, capfd: Any) -> None:
    stack = new_stack(workers=1, require_key=True, api_keys=())
    stack.workers[0].program = fake_realtime.__file__
    stack.start()
    assert {answer.status for answer in asks(stack, "anything", 2)} == {401}
    key = Verb(stack, capfd).add("judy", "--concurrent", "1")
    url, headers = f"ws://{HOST}:{stack.port}/v1/realtime", {"authorization": f"Bearer {key}"}
    with connect(url, additional_headers=headers) as websocket:
        assert websocket.recv()
        assert in_flight(stack)["judy"] == 1
        assert asks(stack, key, 1)[0].status == 429
    until(lambda: in_flight(stack)["judy"] == 0, 5, "it has ended")
    stack.wait_quiet()


@pytest.mark.parametrize(("text", "mode", "word"), [("{}", 0o644, "chmod 600"), ("{", 0o600, "damaged")])
def test_a_proxy_does_not_start_with_keys_that_are_no_good(
    new_stack: Make, text: str, mode: int, word: str
) -> None:
    stack = new_stack(workers=1)
    path: Path = stack.out / "secrets/keys.json"
    path.write_text(text)
    path.chmod(mode)
    stack.start_proxy()
    assert stack.proxy.wait(20) == 1
    assert word in stack.log.read_text()
    assert CHAT not in stack.log.read_text()
