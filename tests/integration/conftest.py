"""A whole stack for a test: rendered by the real renderer, held up by a real supervisord.

Nothing is started before the test says so. At the end supervisord is ended by its pid, and the
test fails if any process of the stack is left.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
import tomli_w
from supervisor.xmlrpc import SupervisorTransport

from tests.support.fake_hub import FakeHub
from tests.support.nvml import StandIn, build
from tests.support.polling import until
from tests.support.ports import free_ports
from tests.support.processes import ProcessLedger, is_alive
from tests.support.unix_http import Where, connection_to
from vllm_stack import cli
from vllm_stack.gpus.mask import MASK
from vllm_stack.layout import Layout

REPOSITORY = Path(__file__).parents[2]
FAKE_VLLM = REPOSITORY / "tests" / "support" / "fake_vllm.py"
BIN = Path(sys.executable).parent  # not resolved: the interpreter of a venv is a link out of it
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session", autouse=True)
def _unchecked() -> Iterator[None]:
    """No hub is asked here, and the fake vLLM is of whatever build its Python has beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_STACK_SKIP_CHECK", "hub vllm-build")
        yield


@dataclass(frozen=True)
class WorkerTree:
    """The processes of one worker, from the wrapper down; created-times guard against reuse."""

    wrapper: int
    server: int
    engine: int
    tensor_parallel: int

    @property
    def pids(self) -> tuple[int, ...]:
        return (self.wrapper, self.server, self.engine, self.tensor_parallel)

    @property
    def below(self) -> tuple[int, ...]:
        """All but the wrapper."""
        return self.pids[1:]


def ask(
    where: Where,
    method: str = "GET",
    path: str = "/health",
    body: object = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> tuple[int, bytes]:
    """Send one request on a connection of its own; give the status and the whole body."""
    connection = connection_to(where, timeout)
    try:
        data = None if body is None else json.dumps(body)
        head = {"content-type": "application/json", "authorization": "Bearer any", **(headers or {})}
        connection.request(method, path, data, head)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def chat(**fake: Any) -> dict[str, Any]:
    """Make a chat request; `fake` is a script for the fake vLLM (`fake_http.SCRIPT`)."""
    return {"model": "m", "messages": [{"role": "user", "content": "one two"}], "fake": fake}


class Traffic:
    """Clients that ask the door again and again; every answer must be a 200."""

    def __init__(self, port: int, clients: int = 3) -> None:
        self.answers: list[tuple[float, object]] = []
        self._port = port
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on) for _ in range(clients)]

    def _ask_on(self) -> None:
        while not self._over.wait(0.02):
            begun = time.monotonic()
            try:
                status, body = ask(self._port, "POST", CHAT, chat(tokens=4, delay=0.03))
                answer: object = status if status == 200 else (status, body)
            except Exception as error:
                answer = error
            self.answers.append((begun, answer))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 5, 15, "requests are answered")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        bad = [answer for _, answer in self.answers if answer != 200]
        if error is None:
            assert not bad, f"{len(bad)} of {len(self.answers)} requests failed: {bad[:3]}"
        elif bad:
            error.add_note(f"{len(bad)} of {len(self.answers)} requests failed: {bad[:3]}")


def _words(options: Mapping[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


class Stack:
    """One stack in a directory of its own: what an operator can do to it, and what it shows."""

    def __init__(
        self,
        out: Path,
        *,
        workers: int = 1,
        restart_delay: float = 1.0,
        log_starts: bool = False,
        env: Mapping[str, str] | None = None,
        models: Sequence[Mapping[str, Any]] = (),
        **options: str,
    ) -> None:
        # Tables of a stack file; `workers` is then how many they have together.
        self.models = models
        self.home = out.parent
        self.home.mkdir(parents=True, exist_ok=True)
        self.layout = Layout.at(out)
        *worker_ports, self.door, self.admin = free_ports(workers + 2)
        self.names = [f"worker-{index}" for index in range(workers)]
        self.ports: list[Where] = [*worker_ports]
        if options.get("worker_transport") == "unix":
            self.ports = [self.layout.worker_socket(name) for name in self.names]
        self.config = self.home / "fake.json"
        self.config.write_text("{}")
        self.starts_file = self.home / "starts"
        inherited = {name: value for name, value in os.environ.items() if name != MASK}
        self.env = {**inherited, "FAKE_VLLM_CONFIG": str(self.config), **(env or {})}
        self.options = {
            "--workers": str(workers),
            "--base-port": str([*worker_ports, 5001][0]),
            "--port": str(self.door),
            "--admin-port": str(self.admin),
            "--device": "cpu",
            "--vllm-command": self._noting_command() if log_starts else f"{sys.executable} {FAKE_VLLM}",
            "--restart-delay": str(restart_delay),
            "--drain-timeout": "1",
            "--start-stagger": "none",
            "--out": str(out),
        } | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        self.ledger = ProcessLedger(
            self.layout.out, title_prefix=f"vllm-stack:{self.layout.stack_name}:", settle=10
        )
        self.supervisord: subprocess.Popen[bytes] | None = None

    def _noting_command(self) -> str:
        """Write a vLLM command that notes when, as which process and for which port it starts."""
        path = self.home / "noting-vllm"
        python, fake, starts = (shlex.quote(str(p)) for p in (sys.executable, FAKE_VLLM, self.starts_file))
        path.write_text(
            f'#!/bin/sh\nread -r up rest < /proc/uptime\necho "$up $$ $6" >> {starts}\n'
            f'exec {python} {fake} "$@"\n'
        )
        path.chmod(0o755)
        return str(path)

    # What an operator does.

    def render(self, **changed: str) -> int:
        """Render, with some options changed for this time; give the exit code.

        In this process as long as nothing runs, because it takes a tenth of the time; but GPUs are
        looked for in the environment of the stack, where the test may have put some.
        """
        options = self.options | {f"--{name.replace('_', '-')}": value for name, value in changed.items()}
        argv = ["render", *(self._file(options) if self.models else ["org/model", *_words(options)])]
        if self.supervisord is None and self.options["--device"] == "cpu":
            return cli.run(argv)
        # With the same interpreter by the same name: it stands in supervisord.conf.
        done = self._run(sys.executable, "-m", "vllm_stack", *argv)
        print(done.stdout, done.stderr)
        return done.returncode

    def _file(self, options: Mapping[str, str]) -> list[str]:
        """Write the stack file that says what these options do."""
        stack = {name.removeprefix("--"): value for name, value in options.items() if name != "--workers"}
        path = self.home / "stack.toml"
        path.write_text(tomli_w.dumps({**stack, "model": self.models}))
        return ["--file", str(path)]

    def start(self, reap: bool = True) -> Self:
        """Start supervisord in the foreground of a session of its own, as a terminal would.

        Its end is collected at once, as a shell does it; without `reap` it stays as a zombie.
        """
        self.supervisord = self.ledger.start(
            [BIN / "supervisord", "-c", self.layout.supervisord_conf],
            env=self.env,
            cwd=self.home,
            log=self.home / "supervisord.out",
        )
        if reap:
            threading.Thread(target=self.supervisord.wait, daemon=True).start()
        return self

    def up(self) -> Self:
        """Render, start, and wait until every worker is ready."""
        assert self.render() == 0
        self.start()
        until(self.answers, 15, "supervisord answers")
        until(self.is_ready, 30, "all workers are ready")
        return self

    def supervisorctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self._run(BIN / "supervisorctl", "-c", self.layout.supervisord_conf, *words)

    def vllm_stack(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on this stack, in a process of its own."""
        return self._run(BIN / "vllm-stack", verb, *words, "--out", self.layout.out)

    def _run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        argv = [str(word) for word in words]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=90, check=False, env=self.env, cwd=self.home
        )

    def set_fake(self, worker: int | None = None, **settings: object) -> None:
        """Set FAKE_VLLM_* settings, of one worker or of all, for every later start of a server."""
        layers: dict[str, dict[str, object]] = json.loads(self.config.read_text())
        layer = layers.setdefault("*" if worker is None else self._fake_name(worker), {})
        layer.update({f"FAKE_VLLM_{name}": value for name, value in settings.items()})
        fresh = self.config.with_suffix(".new")
        fresh.write_text(json.dumps(layers))
        fresh.replace(self.config)

    def _fake_name(self, worker: int) -> str:
        where = self.ports[worker]
        return where.stem if isinstance(where, Path) else str(where)

    def traffic(self) -> Traffic:
        return Traffic(self.door)

    # What it shows.

    def rpc(self, method: str, *values: object) -> Any:
        """Call `supervisor.METHOD` with supervisor's own client, not ours."""
        transport = SupervisorTransport(None, None, f"unix://{self.layout.socket}")
        with xmlrpc.client.ServerProxy("http://127.0.0.1", transport) as server:
            return getattr(server.supervisor, method)(*values)

    def answers(self) -> bool:
        return self.supervisord is not None and self.rpc("getPID") == self.supervisord.pid

    def info(self, name: str) -> dict[str, Any]:
        """Give supervisord's view of a program."""
        group = "proxy" if name == "proxy" else "workers"
        return dict(self.rpc("getProcessInfo", f"{group}:{name}"))

    def state(self, name: str) -> str:
        return str(self.info(name)["statename"])

    def pid(self, name: str) -> int:
        return int(self.info(name)["pid"])

    def workers_seen(self) -> dict[str, str]:
        """Give the state of every worker as the proxy sees it."""
        answer = json.loads(ask(self.admin, path="/workers")[1])
        return {worker["name"]: worker["state"] for worker in answer["workers"]}

    def is_ready(self) -> bool:
        if self.supervisord is not None and self.supervisord.poll() is not None:
            pytest.fail(f"supervisord ended with {self.supervisord.returncode}: {self.log('supervisord')}")
        return all(self.workers_seen().get(name) == "ready" for name in self.names)

    def serves(self, worker: int = 0) -> bool:
        """Ask a worker itself, past the proxy."""
        return ask(self.ports[worker])[0] == 200

    def tree(self, worker: int = 0) -> WorkerTree:
        """Give the processes of a serving worker."""
        told = json.loads(ask(self.ports[worker], path="/fake/state")[1])
        return WorkerTree(self.pid(self.names[worker]), told["pid"], told["engine_pid"], told["worker_pid"])

    def starts(self, worker: int = 0) -> list[tuple[float, int]]:
        """Give when (CLOCK_BOOTTIME, 10 ms) and as which process each server of a worker began."""
        if not self.starts_file.exists():
            return []
        lines = [line.split() for line in self.starts_file.read_text().splitlines()]
        return [(float(up), int(pid)) for up, pid, port in lines if int(port) == self.ports[worker]]

    def failure(self, worker: int = 0) -> dict[str, Any]:
        """Give the failure record of a worker, {} if there is none."""
        path = self.layout.state / f"{self.names[worker]}.failure.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def log(self, name: str) -> str:
        """Give the log of a program, or of supervisord."""
        path = self.layout.logs / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def says(self, name: str, text: str) -> None:
        """A program has said it: supervisord writes that down in its own time."""
        until(lambda: text in self.log(name), 10, f"{name} says {text!r}")

    def processes(self) -> list[psutil.Process]:
        """Give every living process that is of this stack, however it was orphaned or renamed."""
        return self.ledger.alive()

    def kill(self, pid: int, signum: int = signal.SIGKILL) -> None:
        self.ledger.remember()
        os.kill(pid, signum)

    def assert_all_gone(self, timeout: float = 5.0) -> None:
        def left() -> list[str]:
            shown = []
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    shown.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
            return shown

        until(lambda: not (seen := left()) or _unless(seen), timeout, "no process of the stack is left")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill supervisord by its pid; whatever has not gone by itself then fails the test.

        Not for rudeness: an orderly stop takes supervisord 3 to 5 s, and has tests of its own.
        """
        self.ledger.remember()
        if self.supervisord is not None and self.supervisord.poll() is None:
            self.supervisord.kill()
        self.ledger.__exit__(kind, error, trace)
        if self.layout.socket.parent != self.layout.run:
            shutil.rmtree(self.layout.socket.parent, ignore_errors=True)


def _unless(seen: list[str]) -> bool:
    raise LookupError("; ".join(seen))


def gone(*pids: int) -> Callable[[], bool]:
    """Make the condition that none of these processes lives."""
    return lambda: not any(is_alive(pid) for pid in pids)


def run_at_once(cases: Mapping[str, Callable[[], object]], at_once: int = 4) -> dict[str, str]:
    """Run cases in threads, several at once, because they mostly wait; give what went wrong, by name."""
    with ThreadPoolExecutor(at_once) as pool:
        running = {name: pool.submit(case) for name, case in cases.items()}
    errors = {name: future.exception() for name, future in running.items()}
    return {name: "\n".join(_told(error)) for name, error in errors.items() if error is not None}


def _told(error: BaseException) -> list[str]:
    return [repr(error), *getattr(error, "__notes__", [])]


StackFactory = Callable[..., Stack]
Scenario = Callable[[StackFactory], None]
Play = Callable[[Scenario], None]


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[StackFactory]:
    """Make stacks: `stack(workers=2, restart_delay=1.5)`; the second one lies in `stack-1/out`, and so on."""
    with stacks_in(tmp_path) as make:
        yield make


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libnvidia-ml that tells of the GPUs a test wants (`tests.support.nvml`)."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub without models; a process asks it by HF_ENDPOINT."""
    with FakeHub() as server:
        yield server


@pytest.fixture
def box(nvml_library: Path, tmp_path: Path) -> StandIn:
    """A box without GPUs until the test shows some; a stack stands in it by its environment:
    `stack(device="cuda", env=box.environment)`."""
    return StandIn(nvml_library, tmp_path)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of every scenario in the module: every public function that takes a stack alone."""
    if "scenario" in metafunc.fixturenames:
        scenarios = [
            value
            for name, value in vars(metafunc.module).items()
            if inspect.isfunction(value)
            and value.__module__ == metafunc.module.__name__
            and list(inspect.signature(value).parameters) == ["stack"]
            and not name.startswith(("_", "test_"))
        ]
        metafunc.parametrize("scenario", scenarios, ids=[scenario.__name__ for scenario in scenarios])


@pytest.fixture(scope="module")
def play(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Play]:
    """Give the outcome of a scenario: a test's worth of waiting, played beside those of its module.

    Those that were collected start three at a time as soon as the first is asked for; each is
    still a test of its own, `test_scenario[its name]`, and fails by itself.
    """
    params = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted: list[Scenario] = [p.params["scenario"] for p in params if p and "scenario" in p.params]
    homes = {scenario: tmp_path_factory.mktemp(scenario.__name__[:30]) for scenario in wanted}

    def run(scenario: Scenario) -> None:
        with stacks_in(homes[scenario]) as make:
            scenario(make)

    with ThreadPoolExecutor(3) as pool:
        running = {scenario: pool.submit(run, scenario) for scenario in wanted}
        yield lambda scenario: running[scenario].result()
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def stacks_in(home: Path) -> Iterator[StackFactory]:
    count = 0
    with contextlib.ExitStack() as made:

        def make(out: Path | None = None, **options: Any) -> Stack:
            nonlocal count
            place = home if count == 0 else home / f"stack-{count}"
            count += 1
            return made.enter_context(Stack(out or place / "out", **options))

        yield make
