"""Two fake backends, and proxies before them, started and known to answer rightly."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.answer import Answer, fault_of_completion, fault_of_stream
from benchmarks.cores import Split
from benchmarks.processes import Processes
from benchmarks.proxies import Place, Proxy
from benchmarks.proxies.base import backend_socket
from benchmarks.request import chat_body, chat_request
from benchmarks.usage import cpu_by_process, memory_kb

BACKENDS = 2
# Milliseconds between the events of a stream; Seconds a proxy may take to become ready.
GAP = 10.0
START = 60.0


class BenchmarkError(Exception):
    """Something was not as it has to be for a figure to mean anything."""


@dataclass(frozen=True, slots=True)
class Target:
    """What load is sent to: a running proxy, or the backends themselves."""

    name: str
    ports: tuple[int, ...]
    process: subprocess.Popen[bytes] | None = None
    rows: tuple[str, ...] = ("streams",)

    def cpu_by_process(self) -> dict[int, float]:
        """Give the CPU time of each of the proxy's processes so far; without a proxy there is none."""
        return {} if self.process is None else cpu_by_process(self.process.pid)

    def cpu_seconds(self) -> float:
        return sum(self.cpu_by_process().values())

    def memory_kb(self) -> float:
        return 0.0 if self.process is None else memory_kb(self.process.pid)


class Laboratory:
    """The backends, and whatever is being measured before them."""

    def __init__(self, directory: Path, processes: Processes, backends: tuple[int, ...]) -> None:
        self.directory, self.processes = directory, processes
        self.direct = Target("direct", backends)
        self._backends: list[subprocess.Popen[bytes]] = []
        self.body = directory / "body.json"
        self.body.write_bytes(chat_body())

    def start_backends(self, split: Split) -> None:
        for port in self.direct.ports:
            argv: list[str | Path] = [sys.executable, "-m", "benchmarks.backend", "--port", str(port)]
            argv += ["--uds", backend_socket(self.directory, port), "--gap", str(GAP)]
            self._backends.append(self.processes.start(f"backend-{port}", argv, split.load))
        for port in self.direct.ports:
            wait_for_answers(port, lambda: None)

    def move_backends(self, split: Split) -> None:
        """Put the backends on other cores."""
        for backend in self._backends:
            os.sched_setaffinity(backend.pid, split.load)

    def set_gap(self, milliseconds: float) -> None:
        """Change how far apart the events of the streams are that begin from now on."""
        for port in self.direct.ports:
            get(port, f"/fake/gap/{milliseconds}")

    def requests_answered(self) -> int:
        return sum(int(json.loads(get(port, "/fake/stats"))["requests"]) for port in self.direct.ports)

    def start(self, proxy: Proxy, place: Place, split: Split) -> Target:
        """Start a proxy, and see that it answers rightly; raises `BenchmarkError` if it does not."""
        name = proxy.name
        process = self.processes.start(
            name, proxy.argv(place), split.proxy, env=proxy.env(place), cwd=place.directory
        )

        def check_alive() -> None:
            if process.poll() is not None:
                raise BenchmarkError(f"it ended with {process.returncode}: {self.processes.last_words(name)}")

        try:
            wait_for_answers(place.port, check_alive)
        except BenchmarkError:
            self.processes.end(process)
            raise
        return Target(name, (place.port,), process, proxy.rows)

    def stop(self, target: Target) -> None:
        if target.process is not None:
            self.processes.end(target.process)


def wait_for_answers(port: int, check: Callable[[], None]) -> None:
    """Return when a few answers in a row, streamed and not, are right; else `BenchmarkError`."""
    deadline = time.monotonic() + START
    right = 0
    fault: str | None = None
    while right < 4:
        check()
        events = 3 if right % 2 else None
        try:
            answer = ask(port, chat_request(events))
            fault = fault_of_completion(answer) if events is None else fault_of_stream(answer, events)
        except OSError as error:
            fault = repr(error)
        right = 0 if fault else right + 1
        if fault:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"no right answer in {START:.0f} s: {fault}")
            time.sleep(0.1)


def ask(port: int, request: bytes) -> Answer:
    """Send one request on a connection of its own."""
    answer = Answer()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(request)
        while data := sock.recv(65536):
            if answer.feed(data):
                break
    return answer


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()
