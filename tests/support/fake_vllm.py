"""A scriptable stand-in for `vllm serve`: its processes, its start and end, its HTTP.

    python fake_vllm.py serve MODEL --host H --port P [any other vllm option]
    python fake_vllm.py serve MODEL --uds PATH [any other vllm option]

Theory of operation. Three lives follow one another in this process:

  loading   the port is bound but not listened on, so connects are refused and a second bind
            fails; the engine (fake_engine.py) is "loading"; SIGTERM ends us like ^C
  serving   SIGTERM drains for --shutdown-timeout seconds, then aborts what is left; the death
            of the engine turns /health to 503 and ends us a second later with exit code 0
  ending    the engine gets SIGTERM, FAKE_VLLM_ENGINE_GRACE seconds, and SIGKILL

What each request does is scripted by the request: see SCRIPT. What the process does is set by
FAKE_VLLM_* variables: see SETTINGS. What it saw is told by GET /fake/state and /fake/requests.
Times are those of vLLM 0.32 scaled down; where vLLM waits 5 s we wait 1 s.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING or __package__:
    from tests.support.fake_http import INFERENCE, Connection, Request, Script, dump, json_object
else:  # run as a program: this file's directory is on the path, the repository is not
    from fake_http import INFERENCE, Connection, Request, Script, dump, json_object

HERE = Path(__file__).resolve().parent

# Read at each start: from the environment, then from the JSON file named by --fake-config or
# FAKE_VLLM_CONFIG, either flat or by the worker's name, which is its port or the stem of its socket:
# {"5001": {"FAKE_VLLM_...": ...}, "*": {...}}.
SETTINGS: dict[str, Any] = {
    "FAKE_VLLM_LOAD_SECONDS": 0.3,
    "FAKE_VLLM_START_STDERR": "",  # printed before anything else
    "FAKE_VLLM_EXIT_AT": -1.0,  # seconds after start; 0 ends before the engine starts
    "FAKE_VLLM_EXIT_CODE": 1,  # -9 dies of SIGKILL, and so on
    "FAKE_VLLM_IGNORES_TERM": 0,  # the API server is wedged: only SIGKILL helps
    "FAKE_VLLM_SETSID": 0,  # the engine leaves our session and process group
    "FAKE_VLLM_ENGINE_IGNORES_TERM": 0,
    "FAKE_VLLM_ENGINE_COMPUTES": 0,  # it uses a core all the time, as in a long prefill
    "FAKE_VLLM_LEAVE_FILES": 0,  # the engine makes shared memory and a temporary file, as vLLM does
    "FAKE_VLLM_ENGINE_GRACE": 1.0,  # seconds from SIGTERM to SIGKILL of the engine
    "FAKE_VLLM_LEAVE_ENGINE": 0,  # exit without a word to the engine
    "FAKE_VLLM_ENGINE_HOLDS_PORT": 0,  # it inherits the socket: VLLM_WORKER_MULTIPROC_METHOD=fork
    "FAKE_VLLM_ENGINE_DEATH_SECONDS": 1.0,  # from the engine's death to ours
    "FAKE_VLLM_ENGINE_DEATH_EXIT": 0,  # 0 is what vLLM does (vllm#48966)
    "FAKE_VLLM_SCRIPTS": {},  # {path: script} for requests without one; "*" = inference
}

SHOWN_ENVIRONMENT = re.compile(r"CUDA_(VISIBLE_DEVICES|DEVICE_ORDER)$|GLOO_|VLLM_|SUPERVISOR")


# ------------------------------------------------------------------ what it was asked to be


class Settings:
    """SETTINGS with the environment and the configuration file laid over them."""

    def __init__(self, environ: Mapping[str, str], config: str | None, name: str) -> None:
        given: dict[str, Any] = {k: v for k, v in environ.items() if k.startswith("FAKE_VLLM_")}
        config = config or given.get("FAKE_VLLM_CONFIG")
        given.pop("FAKE_VLLM_CONFIG", None)
        if config:
            layers = json.loads(Path(config).read_text())
            if any(name.startswith("FAKE_VLLM_") for name in layers):
                layers = {"*": layers}
            given |= layers.get("*", {}) | layers.get(name, {})
        if unknown := sorted(given.keys() - SETTINGS.keys()):
            raise SystemExit(f"unknown settings: {unknown}")
        self._values = SETTINGS | given

    def number(self, name: str) -> float:
        return float(self._values[name])

    def flag(self, name: str) -> bool:
        return bool(int(self._values[name]))

    def text(self, name: str) -> str:
        return str(self._values[name])

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._values[name]
        return dict(json.loads(value) if isinstance(value, str) else value)


def option(argv: list[str], name: str) -> list[str]:
    """Return the values of `--name a b`, `--name=a`, repeated or not; [] if absent."""
    values: list[str] = []
    taking = False
    for word in argv:
        if word.startswith("-"):
            taking = word == name
            if word.startswith(name + "="):
                values.append(word.partition("=")[2])
        elif taking:
            values.append(word)
    return values


def install(directory: Path) -> Path:
    """Write an executable `vllm` that runs this file into `directory`; return its path."""
    path = directory / "vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_vllm.py"}" "$@"\n')
    path.chmod(0o755)
    return path


# ------------------------------------------------------------------ the process


class Engine:
    """The API server's view of its engine: start, watch, stop."""

    def __init__(self, settings: Settings, environ: Mapping[str, str], listener: socket.socket) -> None:
        self.control, theirs = socket.socketpair()
        resource_tracker.ensure_running()  # a helper that keeps its name and ignores SIGTERM
        tracker = resource_tracker.getfd()
        assert tracker is not None
        options = {
            "prefix": environ.get("VLLM_PROCESS_NAME_PREFIX", "VLLM"),
            "setsid": settings.flag("FAKE_VLLM_SETSID"),
            "ignores_term": settings.flag("FAKE_VLLM_ENGINE_IGNORES_TERM"),
            "computes": settings.flag("FAKE_VLLM_ENGINE_COMPUTES"),
            "makes_files": settings.flag("FAKE_VLLM_LEAVE_FILES"),
            "load_seconds": settings.number("FAKE_VLLM_LOAD_SECONDS"),
            "control": theirs.fileno(),
            "tracker": tracker,
        }
        held = [listener.fileno()] if settings.flag("FAKE_VLLM_ENGINE_HOLDS_PORT") else []
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_engine.py"), "engine", json.dumps(options)],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), tracker, *held],
        )
        theirs.close()
        self.worker = 0
        self.grace = settings.number("FAKE_VLLM_ENGINE_GRACE")

    def loaded(self, wait: float) -> bool:
        if not self.worker and select.select([self.control], [], [], wait)[0]:
            self.worker = json_object(self.control.recv(4096).decode()).get("worker", 0)
        return self.worker != 0

    def dead(self) -> bool:
        return self.process.poll() is not None

    def stopped(self) -> bool:
        """Tell whether SIGSTOP holds the engine or its worker: a hang that /health does not see."""
        try:
            stats = [Path(f"/proc/{p}/stat").read_text() for p in (self.process.pid, self.worker)]
        except OSError:
            return False
        return any(stat.rpartition(")")[2].split()[0] in "tT" for stat in stats)

    def end(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(self.grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class FakeVllm:
    """The API server while it serves: what it counts, and what makes it end."""

    loop: asyncio.AbstractEventLoop
    ended: asyncio.Future[int]

    def __init__(
        self,
        argv: list[str],
        settings: Settings,
        engine: Engine,
        name: str,
        interrupted: Interrupted,
    ) -> None:
        self.interrupted = interrupted
        self.argv, self.settings, self.engine, self.name = argv, settings, engine, name
        given = argv[1] if len(argv) > 1 and not argv[1].startswith("-") else "fake-model"
        self.model = last(argv, "--model", given)
        self.served = option(argv, "--served-model-name") or [self.model]
        self.keys = option(argv, "--api-key") or os.environ.get("VLLM_API_KEY", "").split()
        self.shutdown_seconds = float(last(argv, "--shutdown-timeout", "0"))
        self.keep_alive_seconds = float(os.environ.get("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", 5))
        self.scripts = settings.mapping("FAKE_VLLM_SCRIPTS")
        self.connections: set[Connection] = set()
        self.in_flight: set[Connection] = set()
        self.requests: deque[Request] = deque(maxlen=200)
        self.malformed: deque[dict[str, str]] = deque(maxlen=200)
        self.routes: Counter[str] = Counter()
        self.opened = self.truncated = self.finished = self.aborted = self.most = 0
        self.steps = self.generated = 0
        self.draining = self.dead = False
        self.engine_runs = asyncio.Event()
        self.engine_runs.set()

    # Life.

    async def serve(self, listener: socket.socket, exit_in: float | None) -> int:
        """Serve until told or made to end; return the exit code."""
        self.loop = asyncio.get_running_loop()
        self.ended = self.loop.create_future()
        for signum in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(signum, self.stop)
        if self.interrupted.now:
            self.stop()
        server = await self.loop.create_server(lambda: Connection(self), sock=listener)
        watch = self.loop.create_task(self.watch_engine())
        if exit_in is not None:
            self.loop.call_later(exit_in, self.end, int(self.settings.number("FAKE_VLLM_EXIT_CODE")))
        print(f"Application startup complete. port={self.name}", file=sys.stderr, flush=True)
        code = await self.ended
        watch.cancel()
        server.close()
        for connection in self.connections:
            connection.transport.close()
        await asyncio.sleep(0.02)  # so that what was written leaves
        return code

    def end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)

    def stop(self) -> None:
        """SIGTERM: drain for --shutdown-timeout seconds; a second one ends it now."""
        if self.settings.flag("FAKE_VLLM_IGNORES_TERM"):
            return
        if self.draining:
            return self.end(0)
        self.draining = True
        self.drainer = self.loop.create_task(self.drain())

    async def drain(self) -> None:
        deadline = self.loop.time() + self.shutdown_seconds
        while self.in_flight and self.loop.time() < deadline:
            await asyncio.sleep(0.02)
        await self.interrupt()
        self.end(0)

    async def interrupt(self) -> None:
        tasks = [c.task for c in self.in_flight if c.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def watch_engine(self) -> None:
        while not self.engine.dead():
            if self.engine.stopped():
                self.engine_runs.clear()
            else:
                self.engine_runs.set()
            await asyncio.sleep(0.05)
        self.dead = True
        await self.interrupt()
        await asyncio.sleep(self.settings.number("FAKE_VLLM_ENGINE_DEATH_SECONDS"))
        self.end(int(self.settings.number("FAKE_VLLM_ENGINE_DEATH_EXIT")))

    # Work.

    def script(self, request: Request) -> Script:
        for given in (request.json.get("fake"), request.header("x-fake")):
            if given is not None:
                return given if isinstance(given, dict) else json_object(str(given))
        everywhere = self.scripts.get("*", {}) if request.path in INFERENCE else {}
        chosen: Script = self.scripts.get(request.path, everywhere)
        return chosen

    async def step(self, delay: float) -> None:
        """Make one token: wait its time, and for as long as the engine hangs."""
        if delay:
            await asyncio.sleep(delay)
        if not self.engine_runs.is_set():
            await self.engine_runs.wait()
        self.steps += 1
        self.generated += 1

    def plain(self, request: Request) -> tuple[int, bytes, str]:
        """Answer the routes that generate nothing: status, body, content type."""
        path, kind = request.path, "application/json"
        if path in ("/health", "/ping"):
            return 503 if self.dead else 200, b"", kind
        if path == "/metrics":
            return 200, self.metrics(), "text/plain; version=1.0.0; charset=utf-8"
        answer: dict[str, Any] = {}
        if path == "/version":
            answer = {"version": "0.32.0"}
        elif path == "/load":
            tracked = "--enable-server-load-tracking" in self.argv
            answer = {"server_load": len(self.in_flight) if tracked else 0}
        elif path == "/v1/models":
            common = {"object": "model", "created": 1, "owned_by": "vllm", "root": self.model}
            common |= {"parent": None, "max_model_len": 4096, "permission": []}
            answer = {"object": "list", "data": [{"id": name, **common} for name in self.served]}
        elif path == "/tokenize":
            words = str(request.json.get("prompt", "")).split()
            answer = {"count": len(words), "max_model_len": 4096, "tokens": [len(w) for w in words]}
        return 200, dump(answer), kind

    def metrics(self) -> bytes:
        # An engine that hangs reports nothing, and what it last reported was 0 (measured).
        running = sum(not c.hangs for c in self.in_flight) if self.engine_runs.is_set() else 0
        name = self.served[0].replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        labels = f'engine="0",model_name="{name}"'
        values = {
            ("process_start_time_seconds", "gauge"): 1.5e9,
            ("vllm:num_requests_running", "gauge"): running,
            ("vllm:num_requests_waiting", "gauge"): 0,
            ("vllm:kv_cache_usage_perc", "gauge"): min(1.0, running / 10),
            ("vllm:prefix_cache_queries_total", "counter"): 4 * self.finished,
            ("vllm:prefix_cache_hits_total", "counter"): 3 * self.finished,
            ("vllm:prompt_tokens_total", "counter"): 4 * self.finished,
            ("vllm:generation_tokens_total", "counter"): self.generated,
            ("vllm:generation_tokens_created", "gauge"): 1.5e9,
            ("vllm:iteration_tokens_total", "histogram"): self.steps,
        }
        lines = []
        for (family, kind), value in values.items():
            lines += [f"# HELP {family} One of vLLM's.", f"# TYPE {family} {kind}"]
            own = f"{{{labels}}}" if family.startswith("vllm:") else ""
            if kind == "histogram":
                lines += [f'{family}_bucket{{{labels},le="{le}"}} {float(value)}' for le in ("1.0", "+Inf")]
                lines += [f"{family}_count{own} {float(value)}", f"{family}_sum{own} {float(value)}"]
            else:
                lines.append(f"{family}{own} {float(value)}")
        return "\n".join([*lines, ""]).encode()

    # What the tests ask.

    def control(self, asking: Connection, request: Request) -> bytes:
        if (request.method, request.path) == ("PUT", "/fake/scripts"):
            self.scripts = request.json
            return dump(self.scripts)
        if request.path == "/fake/requests":
            return dump([request.shown() for request in self.requests])
        if request.path == "/fake/state":
            return dump(self.state(asking))
        return dump({"error": "GET /fake/state, GET /fake/requests or PUT /fake/scripts"})

    def state(self, asking: Connection) -> dict[str, Any]:
        shown = {k: v for k, v in os.environ.items() if SHOWN_ENVIRONMENT.match(k)}
        return {
            "pid": os.getpid(),
            "engine_pid": self.engine.process.pid,
            "worker_pid": self.engine.worker,
            "argv": self.argv,
            "cwd": os.getcwd(),
            "env": shown,
            "env_names": sorted(os.environ),
            "requests": dict(self.routes),
            "connections_open": len(self.connections - {asking}),
            "connections_opened": self.opened,
            "in_flight": len(self.in_flight),
            "most_in_flight": self.most,
            "finished": self.finished,
            "aborted": self.aborted,
            "malformed": list(self.malformed),
            "truncated": self.truncated,
            "draining": self.draining,
        }


# ------------------------------------------------------------------ from start to end


def last(argv: list[str], name: str, default: str) -> str:
    return (option(argv, name) or [default])[-1]


def bind(host: str, port: int) -> socket.socket:
    """Take the port without listening, as vLLM does before it loads the model."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # Needed to bind beside the TIME_WAIT of an earlier life; switched off until we listen,
    # because two sockets that both have it may share a port nobody listens on.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return sock


def bind_unix(path: str) -> socket.socket:
    """Take the path as vLLM does: a file that is left there is "in use", and nobody removes ours."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    return sock


def leave(code: int) -> NoReturn:
    """Exit with `code`, or by signal -code; never wait for the resource tracker."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


class Interrupted:
    """SIGTERM or SIGINT before serving; vLLM raises KeyboardInterrupt, we ask every 20 ms."""

    def __init__(self) -> None:
        self.now = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.now = True


def new_event_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    if importlib.util.find_spec("uvloop") is None:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


def main(argv: list[str]) -> NoReturn:
    started = time.monotonic()
    interrupted = Interrupted()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, interrupted)
    if argv[:1] == ["--version"]:
        print("0.32.0")
        leave(0)
    if argv[:1] != ["serve"] or "--help=all" in argv:  # it takes any option, and names none
        raise SystemExit("usage: fake_vllm.py serve MODEL [options]")
    host, port = last(argv, "--host", "127.0.0.1"), int(last(argv, "--port", "8000"))
    uds = last(argv, "--uds", "")
    name = Path(uds).stem if uds else str(port)
    settings = Settings(os.environ, last(argv, "--fake-config", "") or None, name)
    if text := settings.text("FAKE_VLLM_START_STDERR"):
        print(text, file=sys.stderr, flush=True)
    exit_at = settings.number("FAKE_VLLM_EXIT_AT")
    exit_code = int(settings.number("FAKE_VLLM_EXIT_CODE"))
    if exit_at == 0:
        leave(exit_code)

    try:
        listener = bind_unix(uds) if uds else bind(host, port)
    except OSError as error:
        print(f"OSError: {error}: {uds or f'{host}:{port}'}", file=sys.stderr)
        leave(1)
    engine = Engine(settings, os.environ, listener)

    def end(code: int) -> NoReturn:
        if not settings.flag("FAKE_VLLM_LEAVE_ENGINE"):
            engine.end()
        leave(code)

    while not engine.loaded(wait=0.02):
        if interrupted.now and not settings.flag("FAKE_VLLM_IGNORES_TERM"):
            end(-signal.SIGINT)
        if engine.dead():
            print("RuntimeError: Engine core initialization failed.", file=sys.stderr)
            end(1)
        if 0 < exit_at <= time.monotonic() - started:
            end(exit_code)

    async def serve() -> NoReturn:
        # Ends inside the loop: closing it would give SIGTERM its default meaning back while
        # the engine is still there.
        exit_in = max(0.0, started + exit_at - time.monotonic()) if exit_at > 0 else None
        end(await FakeVllm(argv, settings, engine, name, interrupted).serve(listener, exit_in))

    if not uds:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with asyncio.Runner(loop_factory=new_event_loop()) as runner:
        runner.run(serve())
    raise AssertionError("the loop ended before the server")


if __name__ == "__main__":
    main(sys.argv[1:])
