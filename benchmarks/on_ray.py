"""What a request costs on Ray, beside the same stack under supervisord: real vLLM, one worker each.

Both are rendered and run as users do it, one after the other, and asked by the same clients. CPU seconds are
those of every process of a stack, engines apart from the rest; the time to the first token is that of
streams, one at a time.

    python -m benchmarks.on_ray MODEL [--requests 600] [--streams 100]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import requests

BIN = Path(sys.executable).parent
KEY, NAME = "sk-bench", "bench"
PORT, ADMIN, BASE, RAY_PORT, DASHBOARD = 28000, 28001, 28010, 28002, 28003
CLIENTS, TOKENS = 8, 16
QUESTION = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}]}
_ENGINES = ("VLLM::", "vllm-stack:")


@dataclass(frozen=True)
class Cost:
    """What one way of running costs: CPU milliseconds a request, milliseconds to the first token, MB."""

    name: str
    engine: float
    rest: float
    first_token: float
    resident: float
    ready: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    costs = []
    for turn in range(options.rounds):
        for target in ("supervisord", "ray"):
            print(f"Round {turn + 1}: {target}", file=sys.stderr, flush=True)
            with running(options.model, target) as (stack, ready):
                costs += measure(stack, target, ready, options.requests, options.streams)
    for line in report(costs):
        print(line)


@contextlib.contextmanager
def running(model: str, target: str) -> Iterator[tuple[Path, float]]:
    """Run a stack of one worker; gives its directory, and the seconds until it was ready."""
    with tempfile.TemporaryDirectory(prefix="on-ray-") as home:
        out = Path(home) / "out"
        words = ["--device", "cpu", "--port", str(PORT), "--admin-port", str(ADMIN), "--base-port", str(BASE)]
        words += ["--target", target, "--ray-port", str(RAY_PORT), "--ray-dashboard-port", str(DASHBOARD)]
        words += ["--api-key", KEY, "--host", "127.0.0.1", "--out", str(out)]
        served = ["--max-model-len", "512", "--served-model-name", NAME]
        call("render", model, *words, "--", *served)
        begun = time.monotonic()
        try:
            call("up", "--detach", "--timeout", "600", "--out", str(out))
            yield out, time.monotonic() - begun
        finally:
            call("down", "--out", str(out))


def call(*words: str) -> None:
    subprocess.run([BIN / "vllm-stack", *words], check=True, stdout=subprocess.DEVNULL)


def measure(out: Path, target: str, ready: float, count: int, streams: int) -> Iterator[Cost]:
    """Measure a stack through its door, and what is behind the door by itself."""
    ways = {f"{target}, through the door": (PORT, KEY)}
    if target == "ray":
        ways["ray, without the door"] = (BASE, KEY)
    else:
        ways["vllm serve, without the door"] = (BASE, (out / "secrets/internal-key").read_text().strip())
    for name, (port, key) in ways.items():
        load(port, key, 50)
        before = processor_seconds(out)
        load(port, key, count)
        after = processor_seconds(out)
        engine, rest = ((after[part] - before[part]) * 1000 / count for part in ("engine", "rest"))
        first = statistics.median(first_token(port, key) for _ in range(streams))
        yield Cost(name, engine, rest, first * 1000, resident(out), ready)


def load(port: int, key: str, count: int) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        for answer in clients.map(lambda _: ask(port, key), range(count)):
            if answer != 200:
                raise SystemExit(f"A request was answered {answer}")


def ask(port: int, key: str) -> int:
    body = {**QUESTION, "max_tokens": TOKENS}
    return requests.post(url(port), json=body, headers=headers(key), timeout=60).status_code


def first_token(port: int, key: str) -> float:
    """Give the seconds until the second event of a stream: the first one has the role, and no token."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 4,
        "stream": True,
    }
    begun = time.perf_counter()
    with requests.post(url(port), json=body, headers=headers(key), stream=True, timeout=60) as answer:
        events = (line for line in answer.iter_lines() if line.startswith(b"data: {"))
        next(events)
        next(events)
        return time.perf_counter() - begun


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1/chat/completions"


def headers(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def processes(out: Path) -> list[psutil.Process]:
    root = psutil.Process(int((out / "run/supervisord.pid").read_text()))
    return [root, *root.children(recursive=True)]


def is_engine(process: psutil.Process) -> bool:
    words = " ".join(process.cmdline())
    return words.startswith(_ENGINES) and ("EngineCore" in words or "Worker" in words)


def processor_seconds(out: Path) -> dict[str, float]:
    used = {"engine": 0.0, "rest": 0.0}
    for process in processes(out):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used["engine" if is_engine(process) else "rest"] += times.user + times.system
    return used


def resident(out: Path) -> float:
    """Give the memory of all but the engines (USS, MB)."""
    total = 0.0
    for process in processes(out):
        with contextlib.suppress(psutil.Error):
            if not is_engine(process):
                total += process.memory_full_info().uss / 1e6
    return total


def report(costs: list[Cost]) -> Iterator[str]:
    versions = ", ".join(f"{name} {installed(name)}" for name in ("vllm", "ray", "vllm-stack"))
    machine = f"{psutil.cpu_count()} cores, Python {platform.python_version()}"
    yield f"{datetime.date.today()}, {machine}, {versions}"
    yield "| | CPU ms a request, engine | all else | ms to first token | MB without engines | s to ready |"
    yield "|---|---|---|---|---|---|"
    for name in dict.fromkeys(cost.name for cost in costs):
        of = [cost for cost in costs if cost.name == name]
        middle = [
            statistics.median(getattr(cost, part) for cost in of)
            for part in ("engine", "rest", "first_token", "resident", "ready")
        ]
        yield "| {} | {:.1f} | {:.1f} | {:.1f} | {:.0f} | {:.0f} |".format(name, *middle)


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
