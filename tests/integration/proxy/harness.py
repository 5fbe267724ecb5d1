"""A rendered stack without supervisord: fake workers and the real proxy, and clients of bytes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from tests.support import fake_vllm
from tests.support.polling import until
from tests.support.ports import free_ports
from tests.support.processes import ProcessLedger, group_members
from tests.support.unix_http import Where, connection_to
from vllm_stack.commands.render import render_stack
from vllm_stack.layout import Layout
from vllm_stack.options import Options

HOST = "127.0.0.1"
KEY = "a-client-key"
CHAT = "/v1/chat/completions"


# ------------------------------------------------------------------ bytes


@dataclass
class Answer:
    """One answer off the wire; `whole` unless the connection ended before its framing did."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    whole: bool = True
    chunks: list[tuple[float, bytes]] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error in OpenAI's shape; any other shape fails the test."""
        error: dict[str, Any] = self.json["error"]
        assert error.keys() == {"message", "type", "param", "code"}, self.body
        assert error["message"], self.body
        return error

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]


class Wire:
    """A client that writes bytes and reads answers."""

    def __init__(
        self,
        port: int,
        timeout: float = 10,
        receive_buffer: int | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.sock = socket.socket()
        if receive_buffer is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self._data = b""
        try:
            self.sock.connect((HOST, port))
            if tls is not None:
                self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
        except OSError:
            self.sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> Self:
        """Send; a peer that has closed already shows in what is read."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)
        return self

    def finish(self) -> Self:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def answer(self, head_only: bool = False) -> Answer:
        """Read one answer, interim ones included; AssertionError if there is none."""
        answer = self.head()
        coding, length = answer.header("transfer-encoding"), answer.header("content-length")
        if head_only or answer.status < 200 or answer.status in (204, 304):
            return answer
        if coding is not None:
            assert (coding, length) == ("chunked", None), answer.headers
            for chunk in self.chunks():
                if chunk is None:
                    answer.whole = False
                else:
                    answer.chunks.append((time.monotonic(), chunk))
            answer.body = b"".join(chunk for _, chunk in answer.chunks)
        elif length is not None:
            answer.body = self.take(int(length))
            answer.whole = len(answer.body) == int(length)
        else:
            assert answer.header("connection") == "close", answer.headers
            while self._more():
                pass
            answer.body, self._data = self._data, b""
        return answer

    def head(self) -> Answer:
        while b"\r\n\r\n" not in self._data:
            assert self._more(), f"the connection ended after {self._data!r}"
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", first
        pairs = (line.split(": ", 1) for line in lines)
        return Answer(int(status), [(name.lower(), value) for name, value in pairs])

    def chunks(self) -> Iterator[bytes | None]:
        """Yield chunk by chunk as they come; at last None if there was no final one."""
        while True:
            while b"\r\n" not in self._data:
                if not self._more():
                    yield None
                    return
            line, _, self._data = self._data.partition(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            chunk = self.take(size + 2)
            if len(chunk) < size + 2:
                yield None
                return
            assert chunk.endswith(b"\r\n"), chunk[-20:]
            if size == 0:
                return
            yield chunk[:-2]

    @property
    def buffered(self) -> bool:
        return bool(self._data)

    def ended(self) -> bool:
        """Nothing more came, and the peer has closed."""
        return not self._data and not self._more()

    def goes_on(self) -> bool:
        """The connection serves another request."""
        return self.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").answer().status == 200

    def take(self, size: int) -> bytes:
        """Read so many bytes, fewer at the end of the connection."""
        while len(self._data) < size and self._more():
            pass
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionError:
            return False
        self._data += data
        return bool(data)


def request(
    method: str = "POST",
    path: str = CHAT,
    body: dict[str, Any] | bytes | None = None,
    key: str | None = KEY,
    version: str = "1.1",
    **headers: str,
) -> bytes:
    """Write one well-formed request; `x_name` gives the header x-name."""
    lines = [f"{method} {path} HTTP/{version}", "host: door"]
    if key is not None:
        lines.append(f"authorization: Bearer {key}")
    if isinstance(body, dict):
        lines.append("content-type: application/json")
        body = json.dumps(body).encode()
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def chat(stream: bool = False, words: str = "say this", **fake: Any) -> dict[str, Any]:
    """A chat request; `fake` scripts the worker's answer."""
    messages = [{"role": "user", "content": words}]
    return {"model": "m", "messages": messages, "stream": stream, "fake": fake}


def ask(port: int, data: bytes, head_only: bool = False, tls: ssl.SSLContext | None = None) -> Answer:
    """One request, one answer, on a connection of its own."""
    with Wire(port, tls=tls) as wire:
        return wire.send(data).answer(head_only)


def get_json(where: Where, path: str) -> Any:
    connection = connection_to(where, timeout=5)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def get_metrics(where: Where) -> str:
    connection = connection_to(where, timeout=30)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode()
    finally:
        connection.close()


# ------------------------------------------------------------------ workers


class FakeWorker:
    """A fake vLLM on its port, or its socket: what it saw, and its life."""

    program = fake_vllm.__file__

    def __init__(self, stack: Stack, index: int, port: int) -> None:
        self.stack, self.index, self.port = stack, index, port
        self.socket: Path | None = None
        self.process: subprocess.Popen[bytes] | None = None
        # Further options of vLLM's.
        self.arguments: list[str] = []

    @property
    def where(self) -> Where:
        return self.socket or self.port

    @property
    def name(self) -> str:
        """How it calls itself in `x-fake-worker`."""
        return self.socket.stem if self.socket else str(self.port)

    def start(self, **env: object) -> None:
        listen = ["--uds", str(self.socket)] if self.socket else ["--host", HOST, "--port", str(self.port)]
        if self.socket:
            self.socket.unlink(missing_ok=True)  # as the wrapper does
        key = (self.stack.out / "secrets/internal-key").read_text().strip()
        quick = {"FAKE_VLLM_LOAD_SECONDS": 0, "FAKE_VLLM_ENGINE_GRACE": 0.3}
        given = {"VLLM_API_KEY": key, "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": 75, **quick, **env}
        self.process = self.stack.ledger.start(
            [sys.executable, self.program, "serve", "m", *listen, *self.arguments],
            env={**os.environ, **{name: str(value) for name, value in given.items()}},
            log=self.stack.out / f"logs/fake-{self.index}.log",
        )

    def listening(self) -> bool:
        return "connections_open" in self.state()

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = get_json(self.where, "/fake/state")
        return state

    def requests(self) -> list[dict[str, Any]]:
        """Return what came from clients of the door."""
        return [seen for seen in get_json(self.where, "/fake/requests") if seen["target"] != "/health"]

    def last(self) -> dict[str, Any]:
        return self.requests()[-1]

    def count(self) -> int:
        return sum(number for path, number in self.state()["requests"].items() if path != "/health")

    def stop(self) -> None:
        """SIGTERM and gone."""
        assert self.process
        self.process.terminate()
        self.process.wait(10)

    def kill(self) -> None:
        """SIGKILL to it and to its engine, which a kill of the server alone would leave behind."""
        assert self.process
        self.process.kill()
        self.bury()

    def bury(self) -> None:
        """End what is left of a server that is dead."""
        assert self.process
        self.process.wait(10)
        group = self.process.pid
        for pid in group_members(group):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not group_members(group), 5, f"the group {group} is gone")


Play = Callable[[socket.socket, bytes], bool]


class ScriptedWorker:
    """A worker whose bytes the test writes itself.

    It answers /health; every other request goes to `play(socket, request)`, which tells whether
    the connection goes on. `requests` are those others. `read` takes a request off the socket.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self.port = port
        self.play: Play = lambda sock, data: False
        self.read = read_request
        self.requests: list[bytes] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self._open: dict[socket.socket, threading.Thread] = {}
        self._opening = threading.Lock()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(5)
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """End every connection, and wait until that is done."""
        with self._opening:  # so that none is missed, and no thread joined before it runs
            ending = dict(self._open)
        for sock in ending:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in ending.values():
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._opening:
                self._open[sock] = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._open[sock].start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            while data := self.read(sock):
                if data.startswith(b"GET /health "):
                    sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    break
                self.requests.append(data)
                if not self.play(sock, data):
                    break
        with self._opening:
            del self._open[sock]


def read_begin(sock: socket.socket) -> bytes:
    """Read a head, and what comes along with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    return data


def read_request(sock: socket.socket) -> bytes:
    data = read_begin(sock)
    if not data:
        return b""
    head, _, body = data.partition(b"\r\n\r\n")
    size = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
    while len(body) < size:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def close_hard(sock: socket.socket) -> None:
    """Make the end of the connection a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# ------------------------------------------------------------------ the stack


class Stack:
    """A rendered directory, its workers and its proxy."""

    def __init__(self, directory: Path, workers: int = 2, ports: Sequence[int] = (), **options: Any) -> None:
        model = directory / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text('{"num_attention_heads": 4}')
        ports = ports or free_ports(workers + 2)
        self.out = directory / "out"
        self.port, self.admin_port = ports[workers:]
        self.ledger = ProcessLedger(directory)
        quick = {"drain_timeout": 3.0, "queue_timeout": 0.0}
        options = {"api_keys": (KEY,), "proxy_processes": 1, **quick, **options}
        rendered = Options(
            model=str(model),
            out=self.out,
            workers=workers,
            device="cpu",
            base_port=ports[0],
            host=HOST,
            port=self.port,
            admin_port=self.admin_port,
            vllm_command=f"{sys.executable} {fake_vllm.__file__}",
            **options,
        )
        render_stack([rendered])
        self.workers = [FakeWorker(self, index, port) for index, port in enumerate(ports[:workers])]
        if options.get("worker_transport") == "unix":
            for worker in self.workers:
                worker.socket = Layout.at(self.out).worker_socket(f"worker-{worker.index}")
        self.log = self.out / "logs/proxy.log"
        self.proxy_env: dict[str, str] = dict(os.environ)
        self.proxy: subprocess.Popen[bytes]
        # How its clients speak to it, where they do so in TLS.
        self.tls: ssl.SSLContext | None = None

    def serve_models(self, *models: tuple[Sequence[str], Sequence[int]]) -> Self:
        """Before anything starts: make it a stack of several models, of these names on these workers."""
        path = self.out / "proxy.json"
        raw = json.loads(path.read_text())
        servers = [worker["name"] for worker in [*raw["workers"], *raw["upstreams"]]]
        raw["models"] = [
            {"names": list(names), "servers": [servers[index] for index in indices]}
            for names, indices in models
        ]
        path.write_text(json.dumps(raw))
        for names, indices in models:
            for worker in self.workers:
                if worker.index in indices:
                    worker.arguments = ["--served-model-name", *names]
        return self

    def start_proxy(self) -> None:
        argv = [sys.executable, "-P", "-m", "vllm_stack.proxy"]
        self.proxy = self.ledger.start(
            [*argv, self.out / "proxy.json", self.out / "gunicorn.conf.py"], env=self.proxy_env, log=self.log
        )

    def start(self, *, workers: bool = True, **env: object) -> Self:
        """Start everything, and wait until every proxy process takes every worker for ready."""
        self.start_proxy()
        if workers:
            for worker in self.workers:
                worker.start(**env)
        self.wait_ready()
        # The looks above may all have been answered by one process; each logs what it sees.
        sights = self.process_count * len(self.admin()["workers"])
        until(lambda: self.log.read_text().count("-> ready") >= sights, 20, f"{sights} sights of a worker")
        return self

    def wait_ready(self) -> None:
        until(self.all_ready, 20, f"all workers are ready (log: {self.log})")

    def all_ready(self) -> bool:
        assert self.proxy.poll() is None, self.log.read_text()
        # Several processes may answer; each knows of the workers' health by itself.
        looks = 1 if self.process_count == 1 else 12
        return all(w["ready"] for _ in range(looks) for w in self.admin()["workers"])

    @property
    def process_count(self) -> int:
        return int(json.loads((self.out / "proxy.json").read_text())["processes"])

    def processes(self) -> list[int]:
        """Return the process ids of the proxy's processes, those that retire included."""
        return [child.pid for child in psutil.Process(self.proxy.pid).children()]

    def admin(self) -> dict[str, Any]:
        state: dict[str, Any] = get_json(self.admin_port, "/workers")
        return state

    def in_flight(self) -> list[int]:
        return [worker["in_flight"] for worker in self.admin()["workers"]]

    def totals(self) -> dict[str, int]:
        totals: dict[str, int] = self.admin()["totals"]
        return totals

    def retries(self) -> int:
        return sum(number for name, number in self.totals().items() if name.startswith("retries_"))

    def count(self) -> int:
        """Return how many requests have reached the workers."""
        return sum(worker.count() for worker in self.workers)

    def malformed(self) -> list[Any]:
        return [seen for worker in self.workers for seen in worker.state()["malformed"]]

    def aborted(self) -> int:
        return sum(worker.state()["aborted"] for worker in self.workers)

    def wait_quiet(self) -> None:
        """Nothing is in flight, and no worker misses a request it still works on."""
        until(lambda: not any(self.in_flight()), 5, "the proxy has nothing in flight")
        idle = lambda: not any(worker.state()["in_flight"] for worker in self.workers)  # noqa: E731
        until(idle, 5, "the workers have nothing in flight")

    def script(self, scripts: dict[str, Any]) -> None:
        for worker in self.workers:
            connection = connection_to(worker.where, timeout=5)
            connection.request("PUT", "/fake/scripts", json.dumps(scripts))
            assert connection.getresponse().status == 200
            connection.close()

    def ask(self, data: bytes, head_only: bool = False) -> Answer:
        return ask(self.port, data, head_only, self.tls)

    def wire(self, **options: Any) -> Wire:
        return Wire(self.port, **{"tls": self.tls, **options})

    def check_log(self) -> None:
        """Our own bugs are logged; a client must not be able to cause one."""
        text = self.log.read_text()
        assert "Traceback" not in text, text
        assert "A bug of ours" not in text, text

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.ledger.__exit__(kind, error, trace)
        place = Layout.at(self.out).socket.parent
        if place.parent == Path("/tmp"):  # noqa: S108 - where sockets lie whose path would be too long
            shutil.rmtree(place, ignore_errors=True)
        if error is None:
            self.check_log()
