"""The fake vLLM and the helpers around it behave as the tests that lean on them assume."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import fake_vllm
from tests.support.fake_http import reply_tokens
from tests.support.polling import throughout, until
from tests.support.ports import free_port, free_ports
from tests.support.processes import ProcessLedger, find_by_directory, group_members, is_alive, listeners

CHAT = "/v1/chat/completions"
KEY = "internal"


@dataclass
class Fake:
    """A started fake vLLM and a small client for it."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    seen: dict[str, Any] = field(default_factory=dict)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | (headers or {})
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        return json.loads(self.ask("GET", path)[2])

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.json("/fake/state")
        return state

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def raw(self, data: bytes) -> tuple[bytes, bool]:
        """Send bytes; return all that came until the end, and whether the end was a reset."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def ready(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"ended with {self.process.returncode}: {self.log.read_text()}")
        return self.ask("GET", "/health")[0] == 200


class Starter:
    """Starts fakes in one directory, for one ledger."""

    def __init__(self, ledger: ProcessLedger, directory: Path) -> None:
        self.ledger, self.directory = ledger, directory

    def launch(self, *options: str, port: int | None = None, **env: object) -> Fake:
        port = port or free_port()
        argv = [sys.executable, fake_vllm.__file__, "serve", "tiny", "--port", str(port), *options]
        settings = {"FAKE_VLLM_LOAD_SECONDS": 0, "FAKE_VLLM_ENGINE_GRACE": 0.3, **env}
        environ = {**os.environ, **{name: str(value) for name, value in settings.items()}}
        log = self.directory / f"{port}.log"
        return Fake(self.ledger.start(argv, env=environ, cwd=self.directory, log=log), port, log)

    def serve(self, *options: str, port: int | None = None, **env: object) -> Fake:
        fake = self.launch(*options, port=port, **env)
        until(fake.ready, 20, f"the fake with the log {fake.log} serves")
        fake.seen = fake.state()
        return fake


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[ProcessLedger]:
    with ProcessLedger(tmp_path) as ledger:
        yield ledger


@pytest.fixture
def start(ledger: ProcessLedger, tmp_path: Path) -> Starter:
    return Starter(ledger, tmp_path)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fake]:
    """One fake for all tests that leave it as it was."""
    directory = tmp_path_factory.mktemp("shared")
    with ProcessLedger(directory) as ledger:
        yield Starter(ledger, directory).serve(
            "--enable-server-load-tracking",
            VLLM_API_KEY=KEY,
            VLLM_HTTP_TIMEOUT_KEEP_ALIVE=0.3,
            A_MARKER="find-me",
        )


def chat(script: dict[str, Any] | None = None, stream: bool = False, **more: object) -> dict[str, Any]:
    messages = [{"role": "user", "content": "one two"}]
    return {"messages": messages, "stream": stream, "fake": script or {}, **more}


def wire(body: dict[str, Any], path: str = CHAT, method: str = "POST") -> bytes:
    """A request that asks for the connection to be closed after the answer."""
    text = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + text


def read_all(sock: socket.socket) -> tuple[bytes, bool]:
    received = b""
    while True:
        try:
            data = sock.recv(65536)
        except ConnectionResetError:
            return received, True
        if not data:
            return received, False
        received += data


def split(answer: bytes) -> tuple[str, bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().lower(), body


def chunks(body: bytes) -> list[bytes]:
    """Undo the chunked coding; the final, empty chunk is the last item."""
    found = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        found.append(body[:length])
        assert body[length : length + 2] == b"\r\n"
        body = body[length + 2 :]
    return found


def events(body: bytes) -> list[Any]:
    found = [part.removeprefix(b"data: ") for part in body.split(b"\n\n") if part]
    return [text.decode() if text == b"[DONE]" else json.loads(text) for text in found]


def finish_reasons(body: bytes) -> list[str]:
    choices = [event["choices"][0] for event in events(body) if isinstance(event, dict)]
    return [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


class TestAnswers:
    def test_a_stream_has_one_chunk_for_each_event_from_the_role_to_done(self, fake: Fake) -> None:
        answer, reset = fake.raw(wire(chat({"tokens": 3}, stream=True)))
        head, body = split(answer)
        assert head.startswith("http/1.1 200 ok")
        assert not reset
        assert "content-type: text/event-stream; charset=utf-8" in head
        assert f"x-fake-worker: {fake.port}" in head
        assert f"x-fake-pid: {fake.process.pid}" in head
        *parts, final = chunks(body)
        assert final == b""
        assert all(part.startswith(b"data: ") and part.endswith(b"\n\n") for part in parts)
        role, *tokens, finish, done = events(b"".join(parts))
        assert len(parts) == 6
        assert role["choices"][0]["delta"]["role"] == "assistant"
        assert [t["choices"][0]["delta"]["content"] for t in tokens] == reply_tokens("one two", 3)
        assert finish["choices"][0]["finish_reason"] == "stop"
        assert done == "[DONE]"

    def test_a_stream_ends_with_its_usage_when_asked(self, fake: Fake) -> None:
        body = chat({"tokens": 2}, stream=True, stream_options={"include_usage": True})
        *_, usage, _done = events(fake.ask("POST", CHAT, body)[2])
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] == 2

    def test_a_whole_answer_echoes_the_prompt(self, fake: Fake) -> None:
        status, headers, body = fake.ask("POST", CHAT, chat({"tokens": 2}))
        assert status == 200
        assert int(headers["content-length"]) == len(body)
        choice = json.loads(body)["choices"][0]
        assert choice["message"]["content"] == "0:one 1:two "
        assert choice["finish_reason"] == "stop"

    def test_max_tokens_limits_the_answer(self, fake: Fake) -> None:
        answer = json.loads(fake.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[2])
        assert answer["choices"][0]["text"] == "0:a 1:a "
        assert answer["choices"][0]["finish_reason"] == "length"

    def test_size_pads_an_answer(self, fake: Fake) -> None:
        answer = json.loads(fake.ask("POST", CHAT, chat({"size": 300_000}))[2])
        assert len(answer["choices"][0]["message"]["content"]) == 300_000

    def test_the_key_guards_v1_and_nothing_else(self, fake: Fake) -> None:
        wrong = {"authorization": "Bearer wrong"}
        assert fake.ask("GET", "/v1/models", headers=wrong)[::2] == (401, b'{"error":"Unauthorized"}')
        assert fake.json("/v1/models")["data"][0]["id"] == "tiny"
        for path in ("/health", "/ping", "/version", "/metrics", "/load", "/sleep", "/fake/state"):
            assert fake.ask("GET", path, headers=wrong)[0] == 200, path

    def test_an_unknown_path_is_404_and_a_wrong_method_405(self, fake: Fake) -> None:
        assert fake.ask("GET", "/nowhere")[::2] == (404, b'{"detail":"Not Found"}')
        assert fake.ask("GET", CHAT)[0] == 405
        assert fake.ask("HEAD", "/health")[0] == 405

    def test_a_reached_control_route_is_counted(self, fake: Fake) -> None:
        before = fake.state()["requests"].get("/collective_rpc", 0)
        assert fake.ask("POST", "/collective_rpc")[0] == 200
        assert fake.state()["requests"]["/collective_rpc"] == before + 1

    def test_metrics_count_tokens_and_steps(self, fake: Fake) -> None:
        def generated() -> float:
            text = fake.ask("GET", "/metrics")[2].decode()
            assert "vllm:num_requests_running{" in text
            assert "vllm:iteration_tokens_total_count{" in text
            found = re.search(r"^vllm:generation_tokens_total\{.*\} (.*)$", text, re.M)
            assert found
            return float(found[1])

        before = generated()
        fake.ask("POST", CHAT, chat({"tokens": 5}))
        assert generated() == before + 5


class TestTheWire:
    def test_requests_are_shown_as_they_were_received(self, fake: Fake) -> None:
        fake.raw(
            b"POST /tokenize?q=%20x HTTP/1.1\r\nhOsT: a\r\nX-Odd_Case: v\r\nx-odd: 1\r\nx-odd: 2\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        )
        shown = fake.json("/fake/requests")[-1]
        assert (shown["method"], shown["target"]) == ("POST", "/tokenize?q=%20x")
        names = [["hOsT", "a"], ["X-Odd_Case", "v"], ["x-odd", "1"], ["x-odd", "2"]]
        assert shown["headers"] == [*names, ["Transfer-Encoding", "chunked"], ["Connection", "close"]]
        assert shown["body_length"] == 2
        assert shown["body_sha256"] == hashlib.sha256(b"{}").hexdigest()

    def test_pipelined_requests_are_answered_in_order_on_one_connection(self, fake: Fake) -> None:
        first = wire(chat({"tokens": 1, "delay": 0.05})).replace(b"Connection: close\r\n", b"")
        answer, _ = fake.raw(first + wire({}, "/version", "GET"))
        assert answer.index(b"0:one") < answer.index(b"0.32.0")
        one, two = fake.json("/fake/requests")[-2:]
        assert one["connection"] == two["connection"]

    def test_an_idle_connection_is_closed_after_the_keep_alive_time(self, fake: Fake) -> None:
        with fake.connect() as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            start = time.monotonic()
            assert read_all(sock)[0].startswith(b"HTTP/1.1 200")
            assert 0.2 < time.monotonic() - start < 3

    @pytest.mark.parametrize(
        "head",
        [
            "GET /health HTTP/1.1",
            "GET /health HTTP/1.1\r\nHost: a\r\nHost: b",
            "GET /health HTTP/1.1\nHost: a",
            "GET /health HTTP/2.0\r\nHost: a",
            "GET /health HTTP/1.9\r\nHost: a",
            "get /health HTTP/1.1\r\nHost: a",
            "GET http://a/health HTTP/1.1\r\nHost: a",
            "GET /he\x7falth HTTP/1.1\r\nHost: a",
            "GET /h\xe9 HTTP/1.1\r\nHost: a",
            "GET /health#f HTTP/1.1\r\nHost: a",
            "CONNECT a:1 HTTP/1.1\r\nHost: a",
            "GET /health HTTP/1.1\r\nHost : a",
            "GET /health HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded",
            "GET /health HTTP/1.1\r\nHost: a\r\nX: a\x00b",
            "GET /health HTTP/1.1\r\nHost: a\r\nX: a\rb",
            "GET /health HTTP/1.1\r\nHost: a\r\nno colon",
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: +0",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 0, 0",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: ",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
            "POST /tokenize HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "POST /tokenize HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
        ],
    )
    def test_a_malformed_request_is_refused_and_reported(self, fake: Fake, head: str) -> None:
        before = len(fake.state()["malformed"])
        answer, _ = fake.raw(head.encode("latin-1") + b"\r\n\r\n" + b"0\r\n\r\n" * ("chunked" in head))
        assert answer.startswith(b"HTTP/1.1 400")
        assert answer.count(b"HTTP/1.1") == 1
        assert len(fake.state()["malformed"]) == before + 1

    def test_a_request_cut_short_is_counted(self, fake: Fake) -> None:
        before = fake.state()["truncated"]
        with fake.connect() as sock:
            sock.sendall(b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n123")
        until(lambda: fake.state()["truncated"] == before + 1, 5, "the cut request is counted")


class TestFaults:
    @pytest.mark.parametrize(
        ("script", "pattern", "reset"),
        [
            ({"reset_before_head": True}, rb"", True),
            ({"close_before_head": True}, rb"", False),
            ({"garbage_head": True}, rb"\x16\x03\x01.*", False),
            ({"huge_head": True}, rb"HTTP/1.1 200 OK\r\n.*x-huge: h{70000}\r\n.*", False),
            ({"close_mid_body": 5}, rb"HTTP/1.1 200 .*content-length: [1-9].*\r\n\r\n.{5}", False),
            ({"cl_and_te": True}, rb".*\r\ncontent-length: .*\r\ntransfer-encoding: .*0\r\n\r\n", False),
            ({"bad_chunk": True}, rb".*\r\n\r\n[0-9a-f]+\r\n{.*}\r\nzz\r\n.*", False),
            ({"extra_bytes_after_body": True}, rb".*}HTTP/1.1 200 OK\r\n.*stale", False),
            ({"no_body_framing": True}, rb"(?!.*\r\n(content-length|transfer-)).*\r\n\r\n{.*}", False),
            ({"status": 500}, rb"HTTP/1.1 500 .*InternalServerErrorError.*", False),
            ({"status": 204}, rb"HTTP/1.1 204 (?!.*content-length).*\r\n\r\n", False),
            ({"status": 204, "forbidden_body": True}, rb"HTTP/1.1 204 .*\r\n\r\n{.*}", False),
            ({"interim": 103}, rb"HTTP/1.1 103 .*\r\n\r\nHTTP/1.1 200 .*}", False),
            ({"headers": {"X-More": "1"}}, rb".*\r\nX-More: 1\r\n.*", False),
            ({"abort": True}, rb'.*"finish_reason":"abort".*', False),
            ({"tokns": 1}, rb"HTTP/1.1 400 .*unknown script fields.*tokns.*", False),
        ],
    )
    def test_a_whole_answer_can_go_wrong(
        self, fake: Fake, script: dict[str, Any], pattern: bytes, reset: bool
    ) -> None:
        assert_answer(fake.raw(wire(chat(script))), pattern, reset)

    @pytest.mark.parametrize(
        ("script", "pattern", "reset"),
        [
            ({"reset_after_events": 2}, rb"([^\n]*\n){6}.*0:one \"}}\]}\n\n\r\n", True),
            ({"close_after_events": 2}, rb".*0:one \"}}\]}\n\n\r\n", False),
            ({"cut_mid_event": 3}, rb".*0:one .*\n\n\r\n[0-9a-f]+\r\ndata: .*[^}\n]", False),
            ({"bad_chunk": True}, rb".*\"role\".*\n\n\r\nzz\r\n.*", False),
            ({"cl_and_te": True}, rb".*\r\ncontent-length: .*transfer-encoding: .*0\r\n\r\n", False),
            ({"no_body_framing": True}, rb"(?!.*\r\ntransfer-).*\r\n\r\ndata: .*\[DONE\]\n\n", False),
            ({"extra_bytes_after_body": True}, rb".*\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n.*stale", False),
            ({"done": False}, rb'(?!.*DONE).*"stop".*0\r\n\r\n', False),
            ({"abort": True}, rb'(?!.*:one).*"abort".*DONE.*0\r\n\r\n', False),
        ],
    )
    def test_a_stream_can_go_wrong(
        self, fake: Fake, script: dict[str, Any], pattern: bytes, reset: bool
    ) -> None:
        assert_answer(fake.raw(wire(chat(script, stream=True))), pattern, reset)

    def test_the_header_scripts_any_route(self, fake: Fake) -> None:
        assert fake.ask("GET", "/health", headers={"x-fake": '{"status": 500}'})[0] == 500

    def test_scripts_can_be_set_for_a_path(self, fake: Fake) -> None:
        fake.ask("PUT", "/fake/scripts", {"/health": {"status": 503}, "*": {"tokens": 1}})
        assert fake.ask("GET", "/health")[0] == 503
        assert b'"content":"0:a "' in fake.ask("POST", CHAT, {"messages": [{"content": "a"}]})[2]
        fake.ask("PUT", "/fake/scripts", {})
        assert fake.ask("GET", "/health")[0] == 200

    def test_a_client_that_does_not_read_holds_the_generation_up(self, fake: Fake) -> None:
        before = fake.state()
        with fake.connect() as sock:
            sock.sendall(wire(chat({"tokens": 1000, "size": 100_000}, stream=True)))
            until(lambda: fake.state()["in_flight"] == 1, 5, "the request is in flight")
            throughout(lambda: fake.state()["in_flight"] == 1, 0.3, "it waits for its reader", every=0.05)
        until(lambda: fake.state()["in_flight"] == 0, 5, "the request is gone")
        assert fake.state()["aborted"] == before["aborted"] + 1
        assert fake.state()["finished"] == before["finished"]

    @pytest.mark.parametrize("script", [{"hang": True}, {"hang": 2}, {"delay": 9}, {"first_delay": 9}])
    def test_a_client_that_leaves_aborts_its_generation(self, fake: Fake, script: dict[str, Any]) -> None:
        before = fake.state()["aborted"]
        with fake.connect() as sock:
            sock.sendall(wire(chat(script, stream=True)))
            until(lambda: fake.state()["in_flight"] == 1, 5, "the request is in flight")
            assert fake.json("/load") == {"server_load": 1}
        until(lambda: fake.state()["in_flight"] == 0, 5, "the request is gone")
        assert fake.state()["aborted"] == before + 1


def assert_answer(answer: tuple[bytes, bool], pattern: bytes, reset: bool) -> None:
    received, was_reset = answer
    assert re.fullmatch(pattern, received, re.DOTALL), received[-600:]
    assert was_reset == reset


class TestProcesses:
    def test_the_tree_is_vllms_and_the_renamed_lose_their_environment(self, fake: Fake) -> None:
        server = psutil.Process(fake.process.pid)
        assert "fake_vllm.py" in " ".join(server.cmdline())
        titles = {p.pid: " ".join(p.cmdline()).rstrip() for p in server.children(recursive=True)}
        engine, worker = fake.seen["engine_pid"], fake.seen["worker_pid"]
        assert titles.pop(engine) == "VLLM::EngineCore"
        assert titles.pop(worker) == "VLLM::Worker_TP0"
        assert psutil.Process(worker).ppid() == engine
        [(helper, words)] = titles.items()
        assert "resource_tracker" in words
        marked = [
            p for p in (helper, engine, worker) if b"find-me" in Path(f"/proc/{p}/environ").read_bytes()
        ]
        assert marked == [helper]

    def test_state_tells_how_it_was_started(self, fake: Fake) -> None:
        assert fake.seen["argv"][:2] == ["serve", "tiny"]
        assert fake.seen["env"]["VLLM_API_KEY"] == KEY
        assert "A_MARKER" in fake.seen["env_names"]
        assert Path(fake.seen["cwd"]) == fake.log.parent.resolve()

    def test_a_stopped_engine_hangs_its_requests_while_health_stays_200(self, fake: Fake) -> None:
        os.kill(fake.seen["engine_pid"], signal.SIGSTOP)
        try:
            until(lambda: psutil.Process(fake.seen["engine_pid"]).status() == "stopped", 5, "it stops")
            with fake.connect() as sock:
                sock.sendall(wire(chat({"tokens": 20, "delay": 0.01})))
                until(lambda: fake.json("/load") == {"server_load": 1}, 5, "the request is in flight")
                throughout(lambda: fake.json("/load") == {"server_load": 1}, 0.3, "it hangs", every=0.05)
                assert fake.ask("GET", "/health")[0] == 200
                assert 'running{engine="0",model_name="tiny"} 0.0' in fake.ask("GET", "/metrics")[2].decode()
                os.kill(fake.seen["engine_pid"], signal.SIGCONT)
                assert b"19:two" in read_all(sock)[0]
        finally:
            os.kill(fake.seen["engine_pid"], signal.SIGCONT)

    def test_while_loading_the_port_is_taken_and_refuses_and_term_interrupts(self, start: Starter) -> None:
        fake = start.launch(FAKE_VLLM_LOAD_SECONDS=60)
        until(lambda: len(psutil.Process(fake.process.pid).children(recursive=True)) == 3, 5, "it loads")
        with pytest.raises(ConnectionRefusedError):
            fake.connect()
        for reuse in (0, 1):
            with socket.socket() as second:
                second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                with pytest.raises(OSError, match="in use"):
                    second.bind(("127.0.0.1", fake.port))
        fake.process.terminate()
        assert fake.process.wait(5) == -signal.SIGINT

    def test_a_second_server_on_the_port_fails_at_once(self, fake: Fake, start: Starter) -> None:
        second = start.launch(port=fake.port)
        assert second.process.wait(5) == 1
        assert "Address already in use" in second.log.read_text()

    def test_a_server_starts_again_on_a_port_with_connections_in_time_wait(self, start: Starter) -> None:
        fake = start.serve()
        with fake.connect() as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            read_all(sock)
        fake.process.terminate()
        assert fake.process.wait(5) == 0
        start.serve(port=fake.port)

    @pytest.mark.parametrize("moment", ["loading", "serving"])
    def test_a_killed_api_server_leaves_its_engine_behind(
        self, start: Starter, ledger: ProcessLedger, moment: str
    ) -> None:
        prefix = f"stack:{os.getpid()}"
        load = 0.2 if moment == "loading" else 0
        fake = start.launch(FAKE_VLLM_LOAD_SECONDS=load, FAKE_VLLM_SETSID=1, VLLM_PROCESS_NAME_PREFIX=prefix)

        def ours() -> list[psutil.Process]:
            found = find_by_directory(start.directory, prefix)
            return [p for p in found if p.cmdline()[0].startswith(prefix)]

        until(fake.ready if moment == "serving" else lambda: len(ours()) == 2, 10, moment)
        engine = next(p for p in ours() if "EngineCore" in p.cmdline()[0])
        assert os.getsid(engine.pid) == engine.pid
        if moment == "serving":
            assert b"0:one" in fake.raw(wire(chat({"kill_api_server": 2}, stream=True)))[0]
        else:
            fake.process.kill()
        assert fake.process.wait(5) == -signal.SIGKILL
        throughout(lambda: len(ours()) == 2, 0.4, "engine and worker live on")
        strays = ledger.end(settle=0)
        assert len([stray for stray in strays if prefix in stray]) == 2
        assert ours() == []

    def test_the_worker_goes_with_its_engine_and_the_server_exits_0(self, start: Starter) -> None:
        fake = start.serve(FAKE_VLLM_ENGINE_DEATH_SECONDS=0.4)
        with fake.connect() as sock:
            sock.sendall(wire(chat({"delay": 9}, stream=True)))
            until(lambda: fake.state()["in_flight"] == 1, 5, "a request is in flight")
            os.kill(fake.seen["engine_pid"], signal.SIGKILL)
            until(lambda: fake.ask("GET", "/health")[0] == 503, 1, "health says so")
            *_, error, done, _ = chunks(split(read_all(sock)[0])[1])
            assert b'"code":500' in error
            assert b"[DONE]" in done
        until(lambda: not is_alive(fake.seen["worker_pid"]), 1, "the worker is gone")
        assert fake.process.wait(5) == 0

    def test_a_dead_worker_takes_the_engine_along(self, start: Starter) -> None:
        fake = start.serve(FAKE_VLLM_ENGINE_DEATH_EXIT=7, FAKE_VLLM_ENGINE_DEATH_SECONDS=0.1)
        os.kill(fake.seen["worker_pid"], signal.SIGTERM)
        assert fake.process.wait(5) == 7

    def test_term_drains_and_new_requests_are_answered_with_abort(self, start: Starter) -> None:
        fake = start.serve("--shutdown-timeout", "5")
        with fake.connect() as sock:
            sock.sendall(wire(chat({"tokens": 20, "delay": 0.02}, stream=True)))
            until(lambda: fake.state()["in_flight"] == 1, 5, "a request is in flight")
            fake.process.terminate()
            until(lambda: fake.state()["draining"], 5, "the server drains")
            status, _, body = fake.ask("POST", CHAT, chat(stream=True))
            assert (status, finish_reasons(body), events(body)[-1]) == (200, ["abort"], "[DONE]")
            answer = b"".join(chunks(split(read_all(sock)[0])[1]))
        assert finish_reasons(answer) == ["stop"]
        assert fake.process.wait(5) == 0
        assert not is_alive(fake.seen["engine_pid"])

    def test_term_without_a_timeout_aborts_what_is_in_flight(self, start: Starter) -> None:
        fake = start.serve()
        with fake.connect() as stream, fake.connect() as whole:
            stream.sendall(wire(chat({"hang": 2}, stream=True)))
            whole.sendall(wire(chat({"hang": True})))
            until(lambda: fake.state()["in_flight"] == 2, 5, "both are in flight")
            fake.process.terminate()
            assert finish_reasons(b"".join(chunks(split(read_all(stream)[0])[1]))) == ["abort"]
            assert b'"finish_reason":"abort"' in read_all(whole)[0]
        assert fake.process.wait(5) == 0

    def test_an_engine_deaf_to_term_is_killed_or_left(self, start: Starter, ledger: ProcessLedger) -> None:
        killed = start.launch(FAKE_VLLM_ENGINE_IGNORES_TERM=1)
        left = start.launch(FAKE_VLLM_ENGINE_IGNORES_TERM=1, FAKE_VLLM_LEAVE_ENGINE=1)
        for fake in (killed, left):
            until(fake.ready, 20, "the fake serves")
            fake.seen = fake.state()
            fake.process.terminate()
        assert [killed.process.wait(5), left.process.wait(5)] == [0, 0]
        assert not is_alive(killed.seen["engine_pid"])
        assert is_alive(left.seen["engine_pid"])
        os.kill(left.seen["engine_pid"], signal.SIGTERM)
        throughout(lambda: is_alive(left.seen["engine_pid"]), 0.2, "the engine ignores SIGTERM")
        assert any("EngineCore" in stray for stray in ledger.end(settle=0))

    def test_the_configuration_file_is_read_at_each_start(self, start: Starter, tmp_path: Path) -> None:
        port, config = free_port(), tmp_path / "fake.json"
        crash = {"FAKE_VLLM_EXIT_AT": 0, "FAKE_VLLM_EXIT_CODE": 3, "FAKE_VLLM_START_STDERR": "no memory"}
        config.write_text(json.dumps({"*": {"FAKE_VLLM_EXIT_CODE": 9}, str(port): crash}))
        fake = start.launch(port=port, FAKE_VLLM_CONFIG=config)
        assert fake.process.wait(5) == 3
        assert "no memory" in fake.log.read_text()
        config.write_text(json.dumps({"FAKE_VLLM_EXIT_AT": 0.1, "FAKE_VLLM_EXIT_CODE": -9}))
        fake = start.launch(port=port, FAKE_VLLM_CONFIG=config, FAKE_VLLM_LOAD_SECONDS=30)
        assert fake.process.wait(5) == -signal.SIGKILL

    def test_an_installed_command_runs_it(self, ledger: ProcessLedger, tmp_path: Path) -> None:
        log = tmp_path / "log"
        assert ledger.start([fake_vllm.install(tmp_path), "--version"], log=log).wait(5) == 0
        assert log.read_text() == "0.32.0\n"


class TestHelpers:
    def test_a_ledger_fails_the_test_that_leaves_a_process_behind(self, tmp_path: Path) -> None:
        orphan = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
        log = tmp_path / "log"
        with pytest.raises(AssertionError, match="sleep 60: was left behind") as failure:  # noqa: SIM117
            with ProcessLedger(tmp_path, settle=0.1) as ledger:
                ledger.start([sys.executable, "-c", orphan], cwd=Path("/"), log=log).wait(5)
        pid = int(log.read_text())
        assert f"pid {pid} " in str(failure.value)
        assert not is_alive(pid)

    def test_a_ledger_names_a_process_that_ignores_term(self, tmp_path: Path) -> None:
        with ProcessLedger(tmp_path, grace=0.1) as ledger:
            deaf = ledger.start(
                ["sh", "-c", "trap '' TERM; echo; while :; do sleep 0.05; done"], log=tmp_path / "l"
            )
            until((tmp_path / "l").read_text, 5, "it ignores SIGTERM")
            strays = ledger.end()
            assert any("ignored SIGTERM" in stray for stray in strays)
            assert deaf.wait(5) == -signal.SIGKILL

    def test_a_ledger_keeps_the_failure_of_the_test(self, tmp_path: Path) -> None:
        def failing_test() -> None:
            with ProcessLedger(tmp_path, settle=0) as ledger:
                ledger.start(["sh", "-c", "sleep 60 & sleep 60"])
                until(lambda: len(ledger.alive()) == 3, 5, "the shell has its children")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError) as failure:
            failing_test()
        assert "left behind" in failure.value.__notes__[0]

    def test_a_directory_does_not_claim_its_neighbours(self, ledger: ProcessLedger, tmp_path: Path) -> None:
        (tmp_path / "a" / "deep").mkdir(parents=True)
        (tmp_path / "a1").mkdir()
        (tmp_path / "a" / "file").touch()
        (tmp_path / "a1" / "file").touch()
        below = ledger.start(["sleep", "60"], cwd=tmp_path / "a" / "deep")
        beside = ledger.start(["sleep", "60"], cwd=tmp_path / "a1")
        naming = ledger.start(["tail", "-f", tmp_path / "a" / "file"])
        naming_beside = ledger.start(["tail", "-f", tmp_path / "a1" / "file"])
        wanted = {below.pid, naming.pid}
        until(lambda: wanted <= {p.pid for p in find_by_directory(tmp_path / "a")}, 5, "both are found")
        assert {beside.pid, naming_beside.pid}.isdisjoint(p.pid for p in find_by_directory(tmp_path / "a"))

    def test_a_zombie_is_not_alive(self, ledger: ProcessLedger) -> None:
        child = ledger.start(["true"])
        until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 5, "it is a zombie")
        assert not is_alive(child.pid)
        assert group_members(child.pid) == []

    def test_a_reused_pid_is_not_the_same_process(self) -> None:
        created = psutil.Process().create_time()
        assert is_alive(os.getpid(), created)
        assert not is_alive(os.getpid(), created - 5)

    def test_group_members_and_listeners_are_found(self, ledger: ProcessLedger) -> None:
        child = ledger.start(["sleep", "60"])
        assert group_members(child.pid) == [child.pid]
        with socket.create_server(("127.0.0.1", free_port())) as server:
            assert listeners(server.getsockname()[1]) == [os.getpid()]

    def test_until_names_what_it_waited_for_and_what_it_saw(self) -> None:
        with pytest.raises(AssertionError, match=r"not within 0.05 s: rain; at last it was 0"):
            until(lambda: 0, 0.05, "rain")
        with pytest.raises(AssertionError, match=r"raised ZeroDivisionError") as failure:
            until(lambda: 1 // 0, 0, "rain")
        assert isinstance(failure.value.__cause__, ZeroDivisionError)
        assert until(iter([0, None, 7]).__next__, 5, "seven") == 7

    def test_throughout_fails_when_something_ceases(self) -> None:
        with pytest.raises(AssertionError, match="ceased after"):
            throughout(iter([1, 1, 0]).__next__, 5, "sun")

    def test_free_ports_are_consecutive_and_nobody_elses(self) -> None:
        base, *rest = free_ports(4)
        assert rest == [base + 1, base + 2, base + 3]
        with contextlib.ExitStack() as stack:
            for port in (base, *rest):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))

    def test_what_one_test_process_was_given_another_does_not_get(
        self, ledger: ProcessLedger, tmp_path: Path
    ) -> None:
        first, second = free_ports(2)
        code = (
            "from tests.support import ports\n"
            f"ports._outside_ephemeral = lambda: [range({first}, {second + 1})]\n"
            "ports.free_port()"
        )
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        log = tmp_path / "log"
        assert ledger.start([sys.executable, "-c", code], env=env, log=log).wait(10) == 1
        assert f"no 1 consecutive free ports in [range({first}, {second + 1})]" in log.read_text()
