"""How much of the prefix cache each routing policy keeps, counted by real vLLM workers themselves.

Clients talk in turns, through a stack rendered and run as users do it. The conversations share one
system prompt, and every turn carries the real answers of those before. The hit rate is that of the
workers' own counters, before and after; the limit is what one worker reaches that gets everything.
The workers are loaded once: for each policy the stack is rendered again and only the proxy
restarts. Each run has a system prompt of its own, so that no run finds what another one cached.

    python -m benchmarks.prefix_cache MODEL [--policies prefix,random] [--runs 3]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent
MODEL = "bench"
LIMIT = "one worker"
OURS = ("random", "round-robin", "least-loaded", "session", "prefix")
ROUTER = {
    "vllm-router cache_aware": "cache_aware",
    "vllm-router consistent_hash": "consistent_hash",
    "vllm-router consistent_hash, session header": "consistent_hash",
}
# Only these are told which conversation a request belongs to.
TOLD = {"session", "vllm-router consistent_hash, session header"}
SHARE_OF_LIMIT, FLOOR_OF_LIMIT, BUSIEST = 0.97, 0.92, 1.25
WORDS = [
    a + b
    for a in ("river", "stone", "wind", "rain", "moon")
    for b in ("field", "house", "mill", "gate", "ford")
]


@dataclass(frozen=True)
class Shape:
    """What is asked: sizes in words, of which each makes one to three tokens."""

    conversations: int
    turns: int
    clients: int
    system_words: int
    question_words: int
    answer_tokens: int


@dataclass(frozen=True)
class Outcome:
    """One run: the share of prompt tokens found in the cache, and requests by worker."""

    hit_rate: float
    requests: tuple[float, ...]
    seconds: float

    @property
    def busiest(self) -> float:
        return max(self.requests) / statistics.mean(self.requests)


# ------------------------------------------------------------------ conversations


class Conversation:
    """One conversation: its turns so far, and the words of the turns to come."""

    def __init__(self, system: str, words: Iterator[str], shape: Shape) -> None:
        self.id = secrets.token_hex(8)
        self.messages = [{"role": "system", "content": system}]
        self._words = words
        self._shape = shape

    def ask(self, session: requests.Session, url: str, key: str, model: str, told: bool) -> None:
        question = " ".join(next(self._words) for _ in range(self._shape.question_words))
        self.messages.append({"role": "user", "content": question})
        answer = session.post(
            f"{url}/v1/chat/completions",
            json={
                "model": model,
                "messages": self.messages,
                "max_tokens": self._shape.answer_tokens,
                "temperature": 0,
                "ignore_eos": True,
            },
            headers={"authorization": f"Bearer {key}"} | ({"x-session-id": self.id} if told else {}),
            timeout=300,
        )
        answer.raise_for_status()
        self.messages.append(
            {"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]}
        )

    @property
    def turns(self) -> int:
        return len(self.messages) // 2


def talk(url: str, key: str, model: str, shape: Shape, told: bool) -> None:
    """Have all conversations, interleaved: whoever is free takes up the one that has waited longest.

    `told` puts the conversation's name into each request's `x-session-id`.
    """
    source = random.Random(secrets.token_bytes(8))  # noqa: S311 - words, not secrets
    words = iter(lambda: source.choice(WORDS), None)
    system = " ".join(next(words) for _ in range(shape.system_words))
    waiting = deque(Conversation(system, words, shape) for _ in range(shape.conversations))
    failures: list[Exception] = []

    def client() -> None:
        with requests.Session() as session:
            while waiting and not failures:
                with contextlib.suppress(IndexError):
                    conversation = waiting.popleft()
                    try:
                        conversation.ask(session, url, key, model, told)
                    except (requests.RequestException, KeyError, ValueError) as error:
                        failures.append(error)
                        return
                    if conversation.turns < shape.turns:
                        waiting.append(conversation)

    threads = [threading.Thread(target=client) for _ in range(shape.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# ------------------------------------------------------------------ the workers' own counters


def counter(metrics: str, name: str) -> float:
    """Sum a counter over its labels."""
    values = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", metrics, re.MULTILINE)
    if not values:
        raise SystemExit(f"the workers have no counter {name}: is prefix caching off?")
    return sum(map(float, values))


def read_counters(ports: Sequence[int]) -> list[tuple[float, float, float]]:
    """Give prompt tokens looked up, tokens found, and requests answered, for each worker."""
    names = ("vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:request_success_total")
    texts = [requests.get(f"http://{HOST}:{port}/metrics", timeout=30).text for port in ports]
    return [(counter(t, names[0]), counter(t, names[1]), counter(t, names[2])) for t in texts]


def measure(ports: Sequence[int], work: Callable[[], None]) -> Outcome:
    before, begun = read_counters(ports), time.monotonic()
    work()
    seconds, after = time.monotonic() - begun, read_counters(ports)
    grown = [tuple(b - a for a, b in zip(*pair, strict=True)) for pair in zip(before, after, strict=True)]
    looked_up, found = sum(row[0] for row in grown), sum(row[1] for row in grown)
    return Outcome(found / looked_up, tuple(row[2] for row in grown), seconds)


# ------------------------------------------------------------------ the stack


class Stack:
    """Two real workers behind our proxy, on the CPU."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self.out = Path(arguments.out).absolute()
        self.ports = [arguments.base_port + 1 + index for index in range(2)]
        self.url = f"http://{HOST}:{arguments.base_port}"
        self._admin = arguments.base_port + 9

    def render(self, policy: str) -> None:
        arguments = self._arguments
        command = [BIN / "vllm-stack", "render", arguments.model, "--out", self.out, "--policy", policy]
        command += ["--workers", "2", "--base-port", str(self.ports[0]), "--port", str(arguments.base_port)]
        command += ["--admin-port", str(self._admin), "--device", arguments.device]
        if arguments.vllm_command:
            command += ["--vllm-command", arguments.vllm_command]
        command += ["--proxy-processes", str(arguments.proxy_processes)]
        command += ["--", "--served-model-name", MODEL, "--max-model-len", "2048"]
        command += ["--block-size", str(arguments.block_size)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        log = (self.out / "logs/supervisord.out").open("w")
        command = [BIN / "supervisord", "-c", self.out / "supervisord.conf"]
        subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
        subprocess.run([BIN / "vllm-stack", "wait", "--out", self.out], check=True, stdout=subprocess.DEVNULL)

    def change_policy(self, policy: str) -> None:
        """Render again; supervisord restarts what has changed, which is the proxy alone."""
        self.render(policy)
        command = [BIN / "supervisorctl", "-c", self.out / "supervisord.conf", "update"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._ready():
            if time.monotonic() > deadline:
                raise SystemExit(f"the proxy is not ready: see {self.out}/logs/proxy.log")
            time.sleep(0.2)

    def _ready(self) -> bool:
        try:
            workers = requests.get(f"http://{HOST}:{self._admin}/workers", timeout=5).json()["workers"]
        except requests.ConnectionError:
            return False
        return all(worker["ready"] for worker in workers)

    @property
    def internal_key(self) -> str:
        return (self.out / "secrets/internal-key").read_text().strip()

    def stop(self) -> None:
        subprocess.run(
            [BIN / "vllm-stack", "down", "--out", self.out], check=False, stdout=subprocess.DEVNULL
        )


@contextlib.contextmanager
def vllm_router(program: str, policy: str, stack: Stack, port: int) -> Iterator[str]:
    """Run vLLM's own router before the same workers."""
    urls = [f"http://{HOST}:{worker}" for worker in stack.ports]
    command = [program, "--host", HOST, "--port", str(port), "--prometheus-port", str(port + 1)]
    command += ["--policy", policy, "--api-key", stack.internal_key, "--worker-urls", *urls]
    with (stack.out / f"logs/vllm-router-{policy}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not _answers(f"http://{HOST}:{port}/health"):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"vllm-router did not start: see {log.name}")
                time.sleep(0.5)
            yield f"http://{HOST}:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False


# ------------------------------------------------------------------ the run


def run_once(stack: Stack, policy: str, router: str, shape: Shape) -> Outcome:
    """Measure one policy once."""

    def through(url: str, key: str, ports: Sequence[int]) -> Outcome:
        return measure(ports, lambda: talk(url, key, MODEL, shape, policy in TOLD))

    if policy == LIMIT:
        return through(f"http://{HOST}:{stack.ports[0]}", stack.internal_key, stack.ports[:1])
    if policy in ROUTER:
        with vllm_router(router, ROUTER[policy], stack, stack.ports[-1] + 1) as url:
            return through(url, stack.internal_key, stack.ports)
    stack.change_policy(policy)
    return through(stack.url, "any", stack.ports)


def verdict(ratio: float, busiest: float) -> str:
    if busiest > BUSIEST or ratio < FLOOR_OF_LIMIT:
        return "missed"
    return "met" if ratio >= SHARE_OF_LIMIT else "floor"


def report(results: dict[str, list[Outcome]]) -> Iterator[str]:
    """Yield the table, in Markdown; several runs of a policy stand as their mean and their range."""
    limit = statistics.mean(outcome.hit_rate for outcome in results[LIMIT])
    yield "| policy | runs | hit rate | of the limit | busiest / mean | seconds | goal |"
    yield "|---|---|---|---|---|---|---|"
    for policy, outcomes in results.items():
        ratios = [outcome.hit_rate / limit for outcome in outcomes]
        busiest = [outcome.busiest for outcome in outcomes]
        verdicts = [verdict(*pair) for pair in zip(ratios, busiest, strict=True)]
        said = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
        yield (
            f"| {policy} | {len(outcomes)} | {statistics.mean(o.hit_rate for o in outcomes):.3f} "
            f"| {_spread(ratios)} | {'-' if policy == LIMIT else _spread(busiest)} "
            f"| {statistics.mean(o.seconds for o in outcomes):.0f} | {'-' if policy == LIMIT else said} |"
        )


def _spread(values: Sequence[float]) -> str:
    middle = f"{statistics.mean(values):.2f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.2f}-{max(values):.2f})"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="a directory, or a name on the hub")
    parser.add_argument("--policies", default=",".join(OURS), help="of ours, and vllm-router's if installed")
    parser.add_argument("--runs", type=int, default=1, help="runs of each policy")
    parser.add_argument("--conversations", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--system-words", type=int, default=60)
    parser.add_argument("--question-words", type=int, default=30)
    parser.add_argument("--answer-tokens", type=int, default=16)
    # Every full block is cached and no other. On the CPU vLLM's default is 128 tokens, on GPUs 16.
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--proxy-processes", type=int, default=2)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--vllm-command", help="a vLLM of your own")
    parser.add_argument("--router", default="vllm-router", help="vLLM's router; measured if there is one")
    parser.add_argument("--base-port", type=int, default=8100, help="the first of ten free ports")
    parser.add_argument("--out", default="build/prefix-cache")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Measure, print the table, and leave every outcome in OUT/outcomes.json."""
    arguments = parse(argv)
    shape = Shape(
        arguments.conversations,
        arguments.turns,
        arguments.clients,
        arguments.system_words,
        arguments.question_words,
        arguments.answer_tokens,
    )
    policies = [LIMIT, *arguments.policies.split(",")]
    router = shutil.which(arguments.router) or shutil.which(arguments.router, path=str(BIN))
    if router:
        policies += ROUTER
    else:
        print("vllm-router is not installed: left out", file=sys.stderr)
    # Ended from outside (`timeout`), it must not leave a stack behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    stack = Stack(arguments)
    results: dict[str, list[Outcome]] = {policy: [] for policy in policies}
    stack.render("prefix")
    try:
        stack.start()
        for number in range(arguments.runs):
            for policy in policies:
                outcome = run_once(stack, policy, router or "", shape)
                results[policy].append(outcome)
                print(f"run {number + 1}, {policy}: {outcome}", file=sys.stderr, flush=True)
                saved = {name: [vars(one) for one in outcomes] for name, outcomes in results.items()}
                (stack.out / "outcomes.json").write_text(json.dumps(saved))
    finally:
        stack.stop()
    today = datetime.datetime.now(datetime.UTC).date()
    print(f"\n{today}, {os.cpu_count()} CPU cores, Python {platform.python_version()}; {shape}")
    print("\n".join(report(results)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
