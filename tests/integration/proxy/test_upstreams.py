"""Servers elsewhere in the choice: other stacks, and any server that speaks HTTP."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.proxy.harness import HOST, KEY, ScriptedWorker, Stack, chat, get_metrics, request
from tests.support.polling import until
from tests.support.ports import free_port, free_ports
from vllm_stack.address import TcpAddress

UPSTREAM_KEY = "key-of-the-other-box"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
UNKNOWN = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}"
NewStack = Callable[..., Stack]


def key_file(tmp_path: Path, text: str = UPSTREAM_KEY) -> Path:
    path = tmp_path / "upstream-keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
def elsewhere() -> Iterator[ScriptedWorker]:
    """A server that is no stack of ours; it answers `{}` to everything."""
    server = ScriptedWorker(free_port())
    server.play = lambda sock, data: sock.sendall(ANSWER) is None
    yield server
    server.close()


def pure(new_stack: NewStack, *ports: int, host: str = HOST, **options: Any) -> Stack:
    """A stack without workers, before servers on these ports."""
    upstreams = tuple(TcpAddress(host, port) for port in ports)
    return new_stack(workers=0, upstreams=upstreams, **options)


def lines_of(data: bytes, name: bytes) -> list[bytes]:
    head = data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [line.partition(b": ")[2] for line in head if line.lower().startswith(name + b":")]


def test_an_upstream_gets_its_own_key_and_no_other(
    new_stack: NewStack, elsewhere: ScriptedWorker, tmp_path: Path
) -> None:
    stack = pure(new_stack, elsewhere.port, upstream_key_file=key_file(tmp_path)).start()
    assert stack.ask(request(body=chat())).json == {}
    (seen,) = elsewhere.requests
    assert lines_of(seen, b"authorization") == [f"Bearer {UPSTREAM_KEY}".encode()]
    assert lines_of(seen, b"host") == [f"{HOST}:{elsewhere.port}".encode()]
    assert lines_of(seen, b"via") == [b"1.1 vllm-stack"]
    internal = (stack.out / "secrets/internal-key").read_bytes().strip()
    assert KEY.encode() not in seen
    assert internal not in seen


def test_an_upstream_is_in_the_metrics_and_is_not_asked_for_its_own(
    new_stack: NewStack, elsewhere: ScriptedWorker
) -> None:
    stack = pure(new_stack, elsewhere.port).start()
    assert stack.ask(request(body=chat())).json == {}
    answered = re.compile(r'^vllm_stack_first_byte_seconds_count\{gpu="",.*worker="upstream-0"\} 1\.0$', re.M)
    until(lambda: answered.search(get_metrics(stack.admin_port)), 5, "its answer is counted")
    assert re.search(
        r'^vllm_stack_worker_state\{.*state="ready",.*\} 1\.0$', get_metrics(stack.admin_port), re.M
    )
    assert len(elsewhere.requests) == 1


def test_a_proxy_whose_key_file_is_gone_says_so_in_one_line(new_stack: NewStack, tmp_path: Path) -> None:
    keys = key_file(tmp_path)
    stack = pure(new_stack, free_port(), upstream_key_file=keys)
    keys.unlink()
    stack.start_proxy()
    assert stack.proxy.wait(10) == 1
    (line,) = stack.log.read_text().splitlines()
    assert line.startswith("vllm-stack proxy: cannot start: ")
    assert str(keys) in line


def test_an_upstream_without_a_key_gets_none(new_stack: NewStack, elsewhere: ScriptedWorker) -> None:
    stack = pure(new_stack, elsewhere.port).start()
    assert stack.ask(request(body=chat(), x_api_key=KEY)).status == 200
    assert lines_of(elsewhere.requests[0], b"authorization") == []
    assert lines_of(elsewhere.requests[0], b"x-api-key") == []


def test_a_worker_gets_no_key_of_an_upstream(
    new_stack: NewStack, elsewhere: ScriptedWorker, tmp_path: Path
) -> None:
    address = TcpAddress(HOST, elsewhere.port)
    stack = new_stack(
        workers=1, upstreams=(address,), upstream_key_file=key_file(tmp_path), policy="least-loaded"
    ).start()
    for _ in range(20):
        assert stack.ask(request(body=chat(tokens=1))).status == 200
    worker = stack.workers[0]
    internal = (stack.out / "secrets/internal-key").read_text().strip()
    assert worker.requests()
    assert elsewhere.requests, "both are in the choice"
    for seen in worker.requests():
        keys = [value for name, value in seen["headers"] if name.lower() == "authorization"]
        assert keys == [f"Bearer {internal}"]
        assert not [value for name, value in seen["headers"] if name.lower() == "via"]
        hosts = [value.encode() for name, value in seen["headers"] if name.lower() == "host"]
        assert hosts == lines_of(request(), b"host"), "the client's, whatever the upstream got"


def test_another_stack_joins_the_choice_with_a_key_of_its_own(new_stack: NewStack, tmp_path: Path) -> None:
    back = new_stack(workers=1, api_keys=(UPSTREAM_KEY,)).start()
    url = f"http://{HOST}:{back.port}"
    front = new_stack(
        workers=1,
        upstreams=(TcpAddress(HOST, back.port),),
        upstream_key_file=key_file(tmp_path, f"{url} {UPSTREAM_KEY}"),
        policy="least-loaded",
    ).start()
    names = {worker["name"]: worker["address"] for worker in front.admin()["workers"]}
    assert names == {
        "worker-0": f"{HOST}:{front.workers[0].port}",
        "upstream-0": f"{HOST}:{back.port}",
    }
    for number in range(20):
        answer = front.ask(request(body=chat(stream=number % 2 == 0, tokens=3)))
        assert (answer.status, answer.whole) == (200, True)
    assert front.count() > 0
    assert back.count() > 0
    assert front.count() + back.count() == 20


def test_a_client_that_goes_frees_the_worker_behind_the_other_stack(
    new_stack: NewStack, tmp_path: Path
) -> None:
    back = new_stack(workers=1).start()
    front = pure(new_stack, back.port, upstream_key_file=key_file(tmp_path, KEY)).start()
    with front.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=500, delay=0.02)))
        assert wire.head().status == 200
        assert next(iter(wire.chunks()))
    until(lambda: back.aborted() == 1, 2, "the worker saw the client go")
    until(lambda: front.in_flight() == [0], 2, "nothing is in flight")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Stack, Stack]]:
    """Two stacks that name each other, not started; each has a worker."""
    one_ports, other_ports = free_ports(3), free_ports(3)
    keys = key_file(tmp_path, KEY)
    with ExitStack() as stacks:

        def make(name: str, ports: list[int], other: list[int]) -> Stack:
            upstream = TcpAddress(HOST, other[1])
            return stacks.enter_context(
                Stack(tmp_path / name, 1, ports, upstreams=(upstream,), upstream_key_file=keys)
            )

        yield make("one", one_ports, other_ports), make("other", other_ports, one_ports)


def test_two_stacks_that_name_each_other_do_not_hand_requests_back_and_forth(
    pair: tuple[Stack, Stack],
) -> None:
    for stack in pair:
        stack.start_proxy()
        stack.workers[0].start()
    for stack in pair:
        stack.wait_ready()
    for stack in pair:
        for _ in range(15):
            assert stack.ask(request(body=chat(tokens=1))).status == 200
    assert sum(stack.count() for stack in pair) == 30
    for stack in pair:
        assert stack.totals()["requests"] < 2 * 30, "no request passed a door twice"
        seen = stack.workers[0].requests()
        assert all(
            [v for n, v in r["headers"] if n.lower() == "via"] in ([], ["1.1 vllm-stack"]) for r in seen
        )


def test_two_stacks_that_name_each_other_are_not_ready_because_the_other_is(
    pair: tuple[Stack, Stack],
) -> None:
    """Without their workers both must say 503, and one worker makes both ready."""
    one, other = pair
    for stack in pair:
        stack.start_proxy()
        until(stack.admin, 10, "the proxy answers")
    one.workers[0].start()

    def health(stack: Stack) -> int:
        return stack.ask(request("GET", "/health", key=None)).status

    until(lambda: (health(one), health(other)) == (200, 200), 10, "one worker makes both ready")
    one.workers[0].kill()
    until(lambda: (health(one), health(other)) == (503, 503), 10, "without it neither is ready")
    answer = other.ask(request(body=chat()))
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")


def test_an_upstream_that_has_no_worker_ready_costs_no_request(
    new_stack: NewStack, elsewhere: ScriptedWorker
) -> None:
    """It says 503, which is no answer as long as there is somebody else."""
    elsewhere.play = lambda sock, data: sock.sendall(BUSY) is None
    stack = new_stack(workers=1, upstreams=(TcpAddress(HOST, elsewhere.port),), policy="least-loaded").start()

    def asked() -> bool:
        assert stack.ask(request(body=chat(tokens=1))).status == 200
        return len(elsewhere.requests) > 2

    until(asked, 20, "the upstream was tried, and tried again")
    with_none = pure(new_stack, elsewhere.port).start()
    answer = with_none.ask(request(body=chat()))
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    with_none.wait_ready()
    answer = with_none.ask(request("GET", "/v1/models"))
    assert answer.body == b"busy", "on a route that may not be sent again it is an answer"


STORED = [
    request("GET", "/v1/responses/resp_0"),
    request(body={"model": "m", "input": "go on", "previous_response_id": "resp_0"}, path="/v1/responses"),
]


@pytest.mark.parametrize("data", STORED, ids=["by its path", "in a body"])
def test_an_upstream_that_cannot_tell_hides_no_stored_response(
    new_stack: NewStack, elsewhere: ScriptedWorker, data: bytes
) -> None:
    """Its 503 means that a worker of its own is out, which may know; until all know it is no 404."""
    elsewhere.play = lambda sock, data: sock.sendall(BUSY) is None
    stack = new_stack(workers=1, upstreams=(TcpAddress(HOST, elsewhere.port),))
    worker = ScriptedWorker(stack.workers[0].port)
    stack.start(workers=False)
    worker.play = lambda sock, data: sock.sendall(ANSWER) is None
    for _ in range(12):  # either may be asked first
        assert stack.ask(data).status == 200
    assert elsewhere.requests
    worker.play = lambda sock, data: sock.sendall(UNKNOWN) is None
    for _ in range(12):
        answer = stack.ask(data)
        assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    elsewhere.play = worker.play
    assert stack.ask(data).status == 404
    worker.close()


def test_an_upstream_that_dies_is_passed_over_and_taken_back(new_stack: NewStack) -> None:
    port = free_port()
    server = ScriptedWorker(port)
    stack = new_stack(workers=1, upstreams=(TcpAddress(HOST, port),)).start()
    server.close()
    for _ in range(10):
        answer = stack.ask(request(body=chat(tokens=1)))
        assert (answer.status, answer.header("x-fake-worker")) == (200, stack.workers[0].name)
    until(lambda: stack.admin()["workers"][1]["state"] == "not listening", 5, "it is out")
    again = ScriptedWorker(port)
    stack.wait_ready()
    again.close()


def test_a_name_that_does_not_resolve_holds_up_nobody(new_stack: NewStack) -> None:
    stack = new_stack(workers=1, upstreams=(TcpAddress("nowhere.invalid", 80),))
    stack.start_proxy()
    stack.workers[0].start()
    until(lambda: stack.admin()["workers"][0]["ready"], 20, "the worker is ready")
    until(lambda: stack.admin()["workers"][1]["state"] in ("not listening", "late"), 20, "the name is out")
    slowest = 0.0
    for _ in range(20):
        begun = time.monotonic()
        assert stack.ask(request(body=chat(tokens=1))).status == 200
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 1


def test_an_upstream_is_found_by_its_name(new_stack: NewStack) -> None:
    server = ScriptedWorker(free_port())
    server.play = lambda sock, data: sock.sendall(ANSWER) is None
    stack = pure(new_stack, server.port, host="localhost").start()
    assert stack.ask(request(body=chat())).status == 200
    assert lines_of(server.requests[0], b"host") == [f"localhost:{server.port}".encode()]
    server.close()


def test_an_upstream_with_an_ipv6_address_is_reached(new_stack: NewStack) -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("no IPv6 on this machine")
    port = listener.getsockname()[1]
    listener.close()
    server = ScriptedWorker(port, host="::1")
    server.play = lambda sock, data: sock.sendall(ANSWER) is None
    stack = pure(new_stack, port, host="::1").start()
    assert stack.ask(request(body=chat())).status == 200
    assert lines_of(server.requests[0], b"host") == [f"[::1]:{port}".encode()]
    server.close()
