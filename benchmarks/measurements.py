"""The measurements: each puts one kind of load on one target, and gives its figures.

Figures by name: `cpu_us` microseconds of CPU of all the proxy's processes per request or event,
`cpu_share` cores they kept busy, `busiest` the share in it of the busiest process, `per_second`,
`bunch` events that came at once, `p50_ms` and `p99_ms` of the latency or of the time to the first
event, memory in kB.
An answer that is wrong raises `BenchmarkError`: a figure from wrong answers would mean nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Figures, percentile
from benchmarks.laboratory import GAP, BenchmarkError, Laboratory, Target
from benchmarks.request import KEY, PATH
from benchmarks.wrk import faults_of, parse_line

EVENTS = 100
# Milliseconds between the events of streams that are only held open: 500 of them are little work.
GAP_HELD = 200.0
_SCRIPT = Path(__file__).with_name("post.lua")


def measure_requests(
    laboratory: Laboratory, target: Target, cores: tuple[int, ...], connections: int, seconds: float
) -> Figures:
    """Post without a pause on kept connections; the window begins when all of them are open.

    What is counted within the window is what the backends have answered.
    """
    # Connections are opened one after another, and every one is CPU that is no request's.
    warm = 1.0 + connections / 2000
    url = f"http://127.0.0.1:{target.ports[0]}{PATH}"
    argv: list[str | Path] = ["wrk", "-t1", f"-c{connections}", f"-d{round(warm + seconds + 1)}"]
    argv += ["--timeout", "20", "-s", _SCRIPT, url, "--", laboratory.body, KEY]
    wrk = laboratory.processes.start_client("wrk", argv, cores)
    try:
        time.sleep(warm)
        requests, before, began = laboratory.requests_answered(), target.cpu_by_process(), time.monotonic()
        time.sleep(seconds)
        requests = laboratory.requests_answered() - requests
        after, took = target.cpu_by_process(), time.monotonic() - began
        output = wrk.communicate(timeout=60)[0].decode()
    finally:
        laboratory.processes.end(wrk)
    spent = [seconds - before.get(pid, 0.0) for pid, seconds in after.items()]
    cpu = sum(spent)
    said = parse_line(output)
    if fault := faults_of(said):
        raise BenchmarkError(fault)
    if not requests:
        raise BenchmarkError("no request was answered")
    return {
        "cpu_us": cpu / requests * 1e6,
        "per_second": requests / took,
        "cpu_share": cpu / took,
        "busiest": max(spent, default=0.0) / cpu if cpu else 0.0,
        "p50_ms": said["p50_ms"],
        "p99_ms": said["p99_ms"],
    }


def measure_streams(
    laboratory: Laboratory, target: Target, cores: tuple[int, ...], streams: int, seconds: float
) -> Figures:
    """Keep some streams open; their beginnings are spread evenly, each begins anew when it has ended."""
    with _Clients(laboratory, target, cores, "streams", streams=streams, seconds=seconds) as clients:
        clients.next("start")
        cpu = target.cpu_seconds()
        window = clients.next("end")
        cpu = target.cpu_seconds() - cpu
        done = clients.next("done")
    first = [seconds * 1000 for seconds in done["first_events"]]
    return {
        "cpu_us": cpu / window["events"] * 1e6,
        "per_second": window["events"] / window["seconds"],
        "bunch": window["events"] / window["reads"],
        "kept_up": window["events"] / window["seconds"] / (streams * 1000 / GAP),
        "cpu_share": cpu / window["seconds"],
        "p50_ms": percentile(first, 50),
        "p99_ms": percentile(first, 99),
    }


def measure_idle_memory(
    laboratory: Laboratory, target: Target, cores: tuple[int, ...], connections: int
) -> Figures:
    """Weigh kept connections that have had one answer each and wait for the next request."""
    before = target.memory_kb()
    with _Clients(laboratory, target, cores, "idle", connections=connections) as clients:
        clients.next("open")
        time.sleep(1)
        more = target.memory_kb() - before
        clients.let_go()
    return {"idle_kb": more / connections, "empty_mb": before / 1024}


def measure_stream_memory(
    laboratory: Laboratory, target: Target, cores: tuple[int, ...], streams: int
) -> Figures:
    """Weigh streams in the middle of their answers."""
    laboratory.set_gap(GAP_HELD)
    try:
        before = target.memory_kb()
        with _Clients(laboratory, target, cores, "hold", streams=streams, events=10_000) as clients:
            clients.next("open")
            time.sleep(1)
            more = target.memory_kb() - before
            clients.let_go()
    finally:
        laboratory.set_gap(GAP)
    return {"stream_kb": more / streams}


class _Clients:
    """The process of the clients (`load.py`) and what it says."""

    def __init__(
        self, laboratory: Laboratory, target: Target, cores: tuple[int, ...], mode: str, **options: object
    ) -> None:
        self._processes = laboratory.processes
        argv = [sys.executable, "-m", "benchmarks.load", mode]
        for port in target.ports:
            argv += ["--port", str(port)]
        for name, value in {"events": EVENTS, **options}.items():
            argv += [f"--{name}", str(value)]
        self._process: subprocess.Popen[bytes] = self._processes.start_client("load", argv, cores)

    def __enter__(self) -> _Clients:
        return self

    def __exit__(self, *error: object) -> None:
        self._processes.end(self._process)

    def next(self, moment: str) -> dict[str, Any]:
        """Wait until it says that `moment` has come."""
        assert self._process.stdout is not None  # noqa: S101 - start_client makes a pipe
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"the clients ended: {self._processes.last_words('load')}")
        said: dict[str, Any] = json.loads(line)
        if said["at"] != moment or said.get("faults"):
            raise BenchmarkError(f"{said.get('faults')} wrong answers, the first one: {said.get('fault')}")
        return said

    def let_go(self) -> None:
        """End what is held open, and see that all of it still was."""
        assert self._process.stdin is not None  # noqa: S101 - start_client makes a pipe
        self._process.stdin.close()
        if gone := self.next("done")["gone"]:
            raise BenchmarkError(f"{gone} connections were closed while they were to stay")
