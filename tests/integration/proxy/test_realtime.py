"""WebSockets on `/v1/realtime`: opened by those who may, passed both ways, and ended with either side."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import openai
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin

from tests.integration.proxy.harness import HOST, KEY, ScriptedWorker, Stack, Wire, chat, request
from tests.support import fake_realtime
from tests.support.certificates import make_certificate
from tests.support.fake_realtime import MESSAGE, numbered
from tests.support.polling import throughout, until
from tests.support.processes import group_members
from vllm_stack.address import TcpAddress

REALTIME = "/v1/realtime"
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: abc\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\n\r\n"
)
Make = Callable[..., Stack]
Scripted = tuple[Stack, list[ScriptedWorker]]


def of_websockets(stack: Stack) -> Stack:
    """Have the workers of a stack that was not started yet speak WebSocket."""
    for worker in stack.workers:
        worker.program = fake_realtime.__file__
    return stack


@pytest.fixture(scope="module", params=["plain", "tls", "unix"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers behind a door of each kind."""
    directory = tmp_path_factory.mktemp("realtime")
    files = make_certificate(directory)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "tls": {**files.options},
        "unix": {"worker_transport": "unix"},
    }
    with of_websockets(Stack(directory, policy="least-loaded", **options[request.param])) as stack:
        stack.tls = files.client if request.param == "tls" else None
        yield stack.start()


@pytest.fixture
def any_door(shared: Stack) -> Iterator[Stack]:
    yield shared
    shared.wait_quiet()
    shared.check_log()


@pytest.fixture(scope="module")
def shared_plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with of_websockets(Stack(tmp_path_factory.mktemp("realtime"), policy="least-loaded")) as stack:
        yield stack.start()


@pytest.fixture
def door(shared_plain: Stack) -> Iterator[Stack]:
    yield shared_plain
    shared_plain.wait_quiet()
    shared_plain.check_log()


def url_of(stack: Stack, path: str = REALTIME) -> str:
    return f"{'wss' if stack.tls else 'ws'}://{HOST}:{stack.port}{path}"


class WebSocket:
    """A client whose bytes move only while it is asked to do something.

    The library's own blocking client writes to a TLS connection while another of its threads reads
    from it, and now and then that hangs, whatever the server.
    """

    def __init__(self, url: str, **options: Any) -> None:
        async def opened() -> ClientConnection:
            return await connect(url, proxy=None, max_size=None, ping_interval=None, **options)

        self._runner = asyncio.Runner()
        try:
            self._connection = self._runner.run(opened())
        except BaseException:
            self._runner.close()
            raise

    @property
    def headers(self) -> Any:
        assert self._connection.response
        return self._connection.response.headers

    def send(self, message: str | bytes) -> None:
        self._runner.run(asyncio.wait_for(self._connection.send(message), 10))

    def recv(self, timeout: float = 5) -> str | bytes:
        return self._runner.run(asyncio.wait_for(self._connection.recv(), timeout))

    def pinged(self) -> bool:
        async def ping() -> bool:
            return await (await self._connection.ping()) >= 0

        return self._runner.run(asyncio.wait_for(ping(), 5))

    def close(self) -> None:
        self._runner.run(self._connection.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self.close()
        finally:
            self._runner.close()


@contextlib.contextmanager
def tunnel(stack: Stack, path: str = f"{REALTIME}?model=m", **options: Any) -> Iterator[WebSocket]:
    """A WebSocket whose worker has greeted."""
    options = {"additional_headers": {"Authorization": f"Bearer {KEY}"}, "close_timeout": 2, **options}
    with WebSocket(url_of(stack, path), ssl=stack.tls, **options) as websocket:
        assert json.loads(websocket.recv())["type"] == "session.created"
        yield websocket


def refused(stack: Stack, **options: Any) -> tuple[int, Any]:
    with pytest.raises(InvalidStatus) as caught, tunnel(stack, **options):
        pass
    response = caught.value.response
    return response.status_code, json.loads(response.body)["error"]["code"]


def opening(path: str = REALTIME, method: str = "GET", **headers: Any) -> bytes:
    """The head of a request for a WebSocket."""
    asked = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec_websocket_key": base64.b64encode(bytes(16)).decode(),
        "sec_websocket_version": "13",
    }
    return request(method, path, **{**asked, **headers})


def frame(text: bytes) -> bytes:
    """A client's message; its mask is there but does nothing."""
    size = bytes([0x80 | len(text)]) if len(text) < 126 else b"\xff" + len(text).to_bytes(8, "big")
    return b"\x81" + size + bytes(4) + text


def text_of(wire: Wire) -> bytes:
    """Read one short message of a server."""
    first, size = wire.take(2)
    assert first == 0x81
    if size == 126:
        size = int.from_bytes(wire.take(2), "big")
    return wire.take(size)


def heads(stack: Stack) -> list[dict[str, Any]]:
    return [head for worker in stack.workers for head in worker.state()["heads"]]


def open_at_workers(stack: Stack) -> int:
    return sum(worker.state()["in_flight"] for worker in stack.workers)


# ------------------------------------------------------------------ what passes


def test_messages_of_all_kinds_and_sizes_come_back(any_door: Stack) -> None:
    with tunnel(any_door) as websocket:
        for message in ("hello", "", b"\x00\xff", "ä" * 70_000, bytes(range(256)) * 20_000):
            websocket.send(message)
            assert websocket.recv(timeout=10) == message
        assert websocket.pinged()


def test_much_data_passes_in_both_directions_at_once(any_door: Stack) -> None:
    """More than all the sockets on the way hold, so that either direction has to wait for its reader."""

    async def exchange() -> None:
        options: Any = {"ssl": any_door.tls, "proxy": None, "compression": None, "max_size": None}
        headers = {"Authorization": f"Bearer {KEY}"}
        async with connect(url_of(any_door), additional_headers=headers, **options) as websocket:
            await websocket.recv()
            sending = asyncio.create_task(send(websocket))
            for number in range(1000):
                assert await websocket.recv() == numbered(number)
            await sending

    async def send(websocket: Any) -> None:
        for number in range(1000):
            await websocket.send(numbered(number))

    asyncio.run(asyncio.wait_for(exchange(), 30))


# The way it calls `websockets.sync.client.connect` is deprecated there.
@pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")
def test_the_openai_client_talks_in_realtime(door: Stack) -> None:
    with openai.OpenAI(base_url=f"http://{HOST}:{door.port}/v1", api_key=KEY) as client:
        options: Any = {"proxy": None}
        with client.realtime.connect(model="m", websocket_connection_options=options) as connection:
            assert connection.recv().type == "session.created"
            connection.input_audio_buffer.append(audio=base64.b64encode(bytes(300_000)).decode())
            echo: Any = connection.recv()
            assert (echo.type, len(echo.audio)) == ("input_audio_buffer.append", 400_000)
    assert heads(door)[-1]["target"] == "/v1/realtime?model=m"


def test_a_worker_gets_one_handshake_with_its_own_key_and_the_clients_websocket_lines(door: Stack) -> None:
    with tunnel(
        door,
        subprotocols=["realtime"],
        origin=f"http://{HOST}:{door.port}",
        additional_headers=[
            ("Authorization", f"Bearer {KEY}"),
            ("x-request-id", "mine"),
            ("x-forwarded-for", "6.6.6.6"),
            ("keep-alive", "timeout=5"),
        ],
    ) as websocket:
        assert websocket.headers["x-request-id"] == "mine"
    (seen,) = [dict(h["headers"]) for h in heads(door) if ["x-request-id", "mine"] in h["headers"]]
    seen = {name.lower(): value for name, value in seen.items()}
    internal = (door.out / "secrets/internal-key").read_text().strip()
    assert seen["authorization"] == f"Bearer {internal}"
    assert (seen["connection"], seen["upgrade"]) == ("upgrade", "websocket")
    assert (seen["sec-websocket-version"], seen["sec-websocket-protocol"]) == ("13", "realtime")
    assert seen["x-forwarded-for"] == HOST
    assert not seen.keys() & {"keep-alive", "origin", "content-length"}


def test_messages_right_behind_the_head_are_not_lost(any_door: Stack) -> None:
    data = opening() + frame(b"one") + frame(b"two")
    for cut in (len(data), len(data) - 3, len(data) - 20, 40):
        with any_door.wire() as wire:
            wire.send(data[:cut]).send(data[cut:])
            assert wire.head().status == 101
            assert b"session.created" in text_of(wire)
            assert [text_of(wire), text_of(wire)] == [b"one", b"two"]


def test_requests_before_a_websocket_are_answered_first(door: Stack) -> None:
    with door.wire() as wire:
        wire.send(request("GET", "/livez") + request("GET", "/v1/models") + opening() + frame(b"one"))
        assert [wire.answer().status, wire.answer().status, wire.head().status] == [200, 404, 101]
        text_of(wire)
        assert text_of(wire) == b"one"


def test_a_websocket_counts_in_flight_for_as_long_as_it_lasts(any_door: Stack) -> None:
    with tunnel(any_door) as first, tunnel(any_door):
        assert any_door.in_flight() == [1, 1]
        first.close()
        until(lambda: sum(any_door.in_flight()) == 1, 2, "the closed one is out")
        throughout(lambda: sum(any_door.in_flight()) == 1, 0.3, "the open one stays")
    until(lambda: any_door.in_flight() == [0, 0], 2, "nothing is in flight")


def test_the_last_words_and_the_goodbye_of_a_worker_arrive(any_door: Stack) -> None:
    with tunnel(any_door) as websocket:
        websocket.send("close")
        assert websocket.recv() == "last words"
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv()
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "as told")


def test_it_goes_through_another_stack(new_stack: Make, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    far = of_websockets(new_stack(workers=1)).start()
    near = new_stack(workers=0, upstreams=(TcpAddress(HOST, far.port),), upstream_key_file=keys).start()
    with tunnel(near, origin=f"http://{HOST}:{near.port}") as websocket:
        assert (near.in_flight(), far.in_flight()) == ([1], [1])
        websocket.send("far away")
        assert websocket.recv() == "far away"
    until(lambda: (near.in_flight(), far.in_flight()) == ([0], [0]), 2, "both have let go")


# ------------------------------------------------------------------ who may


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_without_the_key_no_websocket_is_opened(any_door: Stack, headers: dict[str, str]) -> None:
    before = len(heads(any_door))
    assert refused(any_door, additional_headers=headers) == (401, "invalid_api_key")
    assert len(heads(any_door)) == before


OWN, PAGE, EVIL = "own", "https://app.example.com", "https://evil.example.com"


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        ((), EVIL, False),
        ((), "null", False),
        ((), OWN, True),
        ((PAGE,), PAGE, True),
        ((PAGE,), EVIL, False),
        ((PAGE,), OWN, True),
        (("*",), EVIL, True),
    ],
)
def test_a_page_opens_a_websocket_only_where_its_origin_may(
    new_stack: Make, allowed: tuple[str, ...], origin: str, passes: bool
) -> None:
    """Without a key: a page anywhere reaches a door on loopback, and CORS has no say."""
    stack = of_websockets(new_stack(workers=1, api_keys=(), cors_origins=allowed)).start()
    named = Origin(f"http://{HOST}:{stack.port}" if origin == OWN else origin)
    if passes:
        with tunnel(stack, origin=named, additional_headers=None) as websocket:
            websocket.send("hello")
            assert websocket.recv() == "hello"
    else:
        assert refused(stack, origin=named, additional_headers=None) == (403, "origin_not_allowed")
        assert heads(stack) == []


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("status", [400, 403, 404, 503])
def test_a_refusal_by_the_worker_is_passed_on_and_the_connection_closed(any_door: Stack, status: int) -> None:
    before = any_door.retries()
    with any_door.wire() as wire:
        answer = wire.send(opening(f"{REALTIME}?refuse={status}") + frame(b"too early")).answer()
        assert (answer.status, answer.body) == (status, b"refused by the worker")
        assert answer.header("connection") == "close"
        assert wire.ended()
    assert any_door.retries() == before


def test_a_plain_request_on_the_route_is_relayed(door: Stack) -> None:
    with door.wire() as wire:
        assert wire.send(request("GET", REALTIME)).answer().json == {"detail": "Not Found"}
        assert wire.goes_on()


def script(scripted: Scripted, play: Callable[[socket.socket, bytes], bool]) -> tuple[Stack, Wire]:
    stack, workers = scripted
    for worker in workers:
        worker.play = play
    return stack, stack.wire()


IGNORED: dict[str, bytes] = {
    "h2c": opening(upgrade="h2c"),
    "two protocols to choose from": opening(upgrade="websocket, h2c"),
    "another path": opening("/v1/models"),
    "a path below": opening(f"{REALTIME}/x"),
    "a slash behind": opening(f"{REALTIME}/"),
    "POST": opening(method="POST", body=b"abc"),
    "a body": opening(body=b"abc"),
    "a body in chunks": opening(transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n",
    "Connection does not name it": opening(connection="keep-alive"),
    "HTTP/1.0": opening(version="1.0"),
}


@pytest.mark.parametrize("data", IGNORED.values(), ids=IGNORED)
def test_other_upgrades_are_ignored(scripted: Scripted, data: bytes) -> None:
    """RFC 9110 section 7.8: the answer is that of a request which had not asked."""
    ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    _, wire = script(scripted, lambda sock, asked: sock.sendall(ok) is None)
    with wire:
        answer = wire.send(data).answer()
        assert (answer.status, answer.body) == (200, b"ok")
        assert b"HTTP/1.0" in data or wire.goes_on()
    (seen,) = [asked for worker in scripted[1] for asked in worker.requests]
    assert b"upgrade" not in seen.lower()
    assert seen.endswith(b"abc" if b"abc" in data else b"\r\n\r\n")


@pytest.mark.parametrize(
    "switch",
    [
        SWITCH.replace(b"websocket", b"h2c"),
        SWITCH.replace(b"Upgrade: websocket\r\n", b""),
        SWITCH.replace(b"X-Own: 1", b"Content-Length: 3"),
        SWITCH.replace(b"X-Own: 1", b"Transfer-Encoding: chunked"),
    ],
    ids=["another protocol", "none named", "a length", "chunks"],
)
def test_a_switch_to_anything_else_is_502(scripted: Scripted, switch: bytes) -> None:
    stack, wire = script(scripted, lambda sock, asked: sock.sendall(switch + b"abc") is not None)
    with wire:
        answer = wire.send(opening()).answer()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
        assert wire.ended()
    stack.wait_ready()


@pytest.mark.parametrize("data", [request(body=chat()), opening("/v1/models"), opening(upgrade="h2c")])
def test_a_switch_nobody_asked_for_is_502(scripted: Scripted, data: bytes) -> None:
    stack, wire = script(scripted, lambda sock, asked: sock.sendall(SWITCH) is not None)
    with wire:
        answer = wire.send(data).answer()
        assert (answer.status, answer.error["code"]) == (502, "upstream_error")
    stack.wait_ready()


def test_the_head_of_a_switch_is_passed_on_and_what_came_behind_it(scripted: Scripted) -> None:
    _, wire = script(scripted, lambda sock, asked: sock.sendall(SWITCH + b"behind") is not None)
    with wire:
        head = wire.send(opening()).head()
        assert head.status == 101
        said = [name for name, _ in head.headers]
        assert sorted(said) == ["connection", "sec-websocket-accept", "upgrade", "x-own", "x-request-id"]
        assert (head.header("connection"), head.header("upgrade")) == ("upgrade", "websocket")
        assert wire.take(100) == b"behind"
        assert wire.ended()


def test_the_last_words_reach_a_client_that_still_talks(scripted: Scripted) -> None:
    """A connection that is closed with bytes unread is reset, and what was on its way is lost."""
    words = bytes(40_000)

    def play(sock: socket.socket, asked: bytes) -> bool:
        sock.sendall(SWITCH + words)
        return False

    stack, workers = scripted
    for worker in workers:
        worker.play = play
    with stack.wire(receive_buffer=4096) as wire:
        assert wire.send(opening()).head().status == 101
        until(lambda: stack.in_flight() == [0, 0], 5, "the worker has let go")
        wire.send(bytes(1000))
        assert wire.take(len(words)) == words
        assert wire.ended()


def test_the_connection_of_a_websocket_carries_nothing_else(scripted: Scripted) -> None:
    """Neither before nor after it: a worker that refuses may be in any state."""
    no = b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno"
    used: list[socket.socket] = []

    def play(sock: socket.socket, asked: bytes) -> bool:
        used.append(sock)
        sock.sendall(no)
        return True

    stack, workers = scripted
    for worker in workers:
        worker.play = play

    def ask_both() -> list[socket.socket]:
        """Have each worker answer over a connection that is then kept."""
        used.clear()
        for worker in workers:
            worker.requests.clear()
        plain = request("GET", "/v1/models")
        until(lambda: stack.ask(plain) and all(w.requests for w in workers), 5, "both were asked", every=0)
        return used[:]

    before = ask_both()
    stack.ask(opening())
    own = used[-1]
    assert own not in before
    assert own not in ask_both()


# ------------------------------------------------------------------ who goes

LEAVES: dict[str, Callable[[Wire], object]] = {
    "close": lambda wire: wire.sock.close(),
    "reset": lambda wire: wire.reset(),
    "half-close": lambda wire: wire.finish(),
}


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
def test_a_client_that_goes_takes_its_websocket_along_within_a_second(
    any_door: Stack, leave: Callable[[Wire], object]
) -> None:
    with any_door.wire() as wire:
        assert wire.send(opening()).head().status == 101
        until(lambda: open_at_workers(any_door) == 1, 5, "it is open")
        start = time.monotonic()
        leave(wire)
        until(lambda: open_at_workers(any_door) == 0, 3, "the worker saw the client go")
        assert time.monotonic() - start < 1
        until(lambda: any_door.in_flight() == [0, 0], 1, "nothing is in flight")


def test_what_a_client_said_before_it_went_arrives(any_door: Stack) -> None:
    before = sum(worker.state()["received"] for worker in any_door.workers)
    with any_door.wire() as wire:
        assert wire.send(opening()).head().status == 101
        wire.send(frame(b"x" * 1_000_000)).finish()
        received = lambda: sum(worker.state()["received"] for worker in any_door.workers)  # noqa: E731
        until(lambda: received() == before + 1_000_000, 5, "the worker got all of it")


def test_a_worker_that_is_killed_ends_its_websockets_at_once(any_door: Stack) -> None:
    with tunnel(any_door) as websocket:
        (dead,) = [worker for worker in any_door.workers if worker.state()["in_flight"]]
        assert dead.process
        start = time.monotonic()
        dead.process.kill()
        with pytest.raises(ConnectionClosed):
            websocket.recv()
        assert time.monotonic() - start < 1
        until(lambda: any_door.in_flight() == [0, 0], 1, "nothing is in flight")
    dead.bury()
    for _ in range(4):  # the other one takes them
        with tunnel(any_door) as websocket:
            websocket.send("hello")
            assert websocket.recv() == "hello"
    dead.start()
    any_door.wait_ready()


def test_a_worker_that_drops_its_websocket_ends_it(any_door: Stack) -> None:
    with tunnel(any_door) as websocket:
        websocket.send("abort")
        with pytest.raises(ConnectionClosed):
            websocket.recv()


def test_without_a_worker_there_is_no_websocket(new_stack: Make) -> None:
    stack = of_websockets(new_stack(workers=1)).start()
    stack.workers[0].stop()
    assert refused(stack) == (503, "no_ready_worker")


def test_a_websocket_in_which_nobody_speaks_is_ended(new_stack: Make) -> None:
    stack = of_websockets(new_stack(workers=1, response_timeout=1.0)).start()
    with tunnel(stack) as websocket:
        start = time.monotonic()
        while time.monotonic() - start < 2:
            websocket.send("still here")
            assert websocket.recv() == "still here"
        spoken = time.monotonic()
        with pytest.raises(ConnectionClosed):
            websocket.recv()
        assert 0.9 < time.monotonic() - spoken < 2.5
    until(lambda: open_at_workers(stack) == 0, 1, "the worker is let off")


# ------------------------------------------------------------------ slow sides


def memory(stack: Stack) -> int:
    return sum(psutil.Process(pid).memory_info().rss for pid in group_members(stack.proxy.pid))


def test_a_client_that_does_not_read_holds_up_its_worker_and_gets_all_in_the_end(any_door: Stack) -> None:
    count = 1000
    with tunnel(any_door, compression=None) as websocket:
        quiet = memory(any_door)
        websocket.send(f"flood {count}")
        throughout(lambda: memory(any_door) - quiet < 10_000_000, 1, "the proxy's memory stays")
        assert sum(any_door.in_flight()) == 1
        assert all(websocket.recv(timeout=10) == numbered(n) for n in range(count))
        assert memory(any_door) - quiet < 10_000_000


def sent_until_held_up(wire: Wire) -> int:
    """Send for as long as anything is taken; give how many bytes were."""
    data, sent = frame(bytes(MESSAGE)), 0
    with contextlib.suppress(TimeoutError):
        while True:
            wire.send(data)
            sent += len(data)
    return sent


def test_a_worker_that_does_not_read_holds_up_its_client(any_door: Stack) -> None:
    with any_door.wire(timeout=1) as wire:
        wire.send(opening() + frame(b"deaf"))
        assert wire.head().status == 101
        assert b"session.created" in text_of(wire)
        (deaf,) = [worker for worker in any_door.workers if worker.state()["in_flight"]]
        quiet = memory(any_door)
        assert 0 < sent_until_held_up(wire) < 50_000_000
        assert memory(any_door) - quiet < 10_000_000
        assert sum(any_door.in_flight()) == 1
        deaf.kill()
        assert wire.ended(), "the end of a worker that does not read is seen at once"
    deaf.start()
    any_door.wait_ready()


# ------------------------------------------------------------------ the end


def test_a_stop_lets_a_websocket_go_on_and_cuts_it_in_time(new_stack: Make) -> None:
    # gunicorn's processes look once a second whether they are to end, and what is open is cut a second early.
    stack = of_websockets(new_stack(workers=1, drain_timeout=5.0)).start()
    with tunnel(stack) as websocket:
        stack.proxy.send_signal(signal.SIGTERM)
        told = time.monotonic()
        until(lambda: refuses(stack.port), 3, "the door is closed")
        websocket.send("still here")
        assert websocket.recv(timeout=1) == "still here"
        with pytest.raises(ConnectionClosed):
            websocket.recv()
        stack.proxy.wait(5)
        assert time.monotonic() - told < 8
    until(lambda: open_at_workers(stack) == 0, 2, "the worker was let off")
    assert stack.proxy.returncode == 0


def test_a_stop_does_not_wait_for_a_client_that_reads_nothing(new_stack: Make) -> None:
    stack = of_websockets(new_stack(workers=1, drain_timeout=1.5)).start()
    with stack.wire(receive_buffer=4096) as wire:
        wire.send(opening() + frame(b"flood 1000"))
        until(lambda: open_at_workers(stack) == 1, 5, "it is open")
        stack.proxy.send_signal(signal.SIGTERM)
        stack.proxy.wait(5)
    until(lambda: not group_members(stack.proxy.pid), 2, "no process of the proxy is left")


def refuses(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
