"""One life of a box's part of a Ray cluster: start it, give it its work, stay until it ends.

It stands where `vllm serve` stands under the wrapper (`vllm_stack.worker`), which reaps whatever Ray leaves,
waits after a failure, and starts it anew. So it has one rule: when it cannot go on, it says why and ends.

The head deploys nothing before every replica has a place: Ray would start some and wait for ever with the
others. A raylet that dies ends `ray start --block`, and so this life.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from vllm_stack.program import STOP_SIGNALS, die_with_parent, parent_is_gone, reap_children, take_signal
from vllm_stack.ray.cluster import Application, Cluster, ClusterSilent
from vllm_stack.ray.node import Node, start_argv
from vllm_stack.ray.resources import missing
from vllm_stack.ray.words import Words

# Seconds between two looks, and between two lines about the same wait.
_TICK = 0.5
_LOOK_EVERY = 2.0
_SPEAK_EVERY = 15.0
# Seconds that a dashboard has to answer for the first time.
_DASHBOARD = 90.0
# Seconds that Ray has to end its own processes when it is told to; the wrapper kills what is left.
_RAY_ENDS = 10.0
# Questions in a row that the dashboard may leave without an answer.
_SILENCES = 3
# Sessions whose logs stay, the running one included.
_SESSIONS = 3
_RUNNING = "RUNNING"
# How Python names an exception: the last such line of a traceback says what went wrong.
_ERROR = re.compile(r"[\w.]+(?:Error|Exception): ")


_Answer = TypeVar("_Answer")


class CannotGoOn(Exception):
    """What keeps this box from serving, in one sentence."""


class Told(Exception):
    """A stop signal came."""


class Conductor:
    """Runs one box."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._cluster = Cluster(node.dashboard_port, node.token)
        self._ray: subprocess.Popen[bytes] | None = None
        self._deployed = False
        self._words = Words(node.temp)
        self._said: tuple[str, float] = ("", 0.0)

    def run(self) -> int:
        """Live this life; gives the exit code: 0 for a stop that was asked for."""
        try:
            _forget_old_sessions(self._node)
            self._start()
            if self._node.serve is not None:
                self._deploy()
            while True:
                self._wait(_LOOK_EVERY)
        except Told:
            self._end()
            return 0
        except CannotGoOn as trouble:
            self._pass_on()
            _say(f"cannot go on: {trouble}")
            self._end()
            return 1

    def _start(self) -> None:
        node, parent = self._node, os.getpid()
        node.temp.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (node.temp, node.temp.parent):
            if place.stat().st_uid != os.getuid():
                raise CannotGoOn(f"{place} belongs to somebody else: render with a shorter --out")

        def prepare() -> None:
            die_with_parent(signal.SIGKILL)
            if parent_is_gone(parent):
                os._exit(1)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())

        argv = start_argv(node, _free_port())
        _say(f"starting Ray: {' '.join(argv)}")
        try:
            self._ray = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=prepare)
        except OSError as error:
            raise CannotGoOn(f"{node.program} cannot be executed: {error}") from None

    def _deploy(self) -> None:
        """Wait for a place for every replica, deploy, and wait until all of them serve."""
        self._wait_for_dashboard()
        while (lack := missing(self._node.wanted, self._answer(self._cluster.boxes))) is not None:
            self._say_again(f"waiting for more boxes: {lack}{self._how_to_join()}")
            self._wait(_LOOK_EVERY)
        _say("deploying: every replica has a place")
        assert self._node.serve is not None  # noqa: S101 - only a head deploys
        try:
            self._deployed = True
            self._cluster.deploy(self._node.serve)
        except ClusterSilent as trouble:
            raise CannotGoOn(f"Ray Serve does not take what it is to serve: {trouble}") from None
        self._wait_until_served()

    def _wait_for_dashboard(self) -> None:
        deadline = time.monotonic() + _DASHBOARD
        while True:
            trouble = "this box does not appear among those of its own cluster"
            try:
                if self._cluster.boxes():
                    return
            except ClusterSilent as silence:
                trouble = str(silence)
            if time.monotonic() >= deadline:
                raise CannotGoOn(trouble)
            self._wait(_TICK)

    def _answer(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask until there is an answer: a machine on which engines start is slow, and may miss one or two."""
        silences = 0
        while True:
            try:
                return ask()
            except ClusterSilent as silence:
                silences += 1
                if silences == _SILENCES:
                    raise CannotGoOn(str(silence)) from None
            self._wait(_LOOK_EVERY)

    def _how_to_join(self) -> str:
        host = self._node.host
        if host is None:
            return ""
        return f" (on another box: vllm-stack join {host}:{self._node.port})"

    def _wait_until_served(self) -> None:
        """Tell what changes until all is served; an application that fails to deploy ends this life."""
        deadline = time.monotonic() + (self._node.start_timeout or float("inf"))
        while True:
            applications = self._answer(self._cluster.applications)
            for name, application in applications.items():
                if application.state == "DEPLOY_FAILED":
                    raise CannotGoOn(f"{name} does not start: {_why(application)}")
            if len(applications) > 1 and all(one.state == _RUNNING for one in applications.values()):
                _say("serving: all replicas run")
                return
            self._say_again("; ".join(_described(applications)))
            if time.monotonic() >= deadline:
                raise CannotGoOn(f"not serving after {self._node.start_timeout:.0f} s (--start-timeout)")
            self._wait(_LOOK_EVERY)

    def _wait(self, seconds: float) -> None:
        """Wait; raises `Told` when a stop comes, and `CannotGoOn` when Ray has ended."""
        deadline = time.monotonic() + seconds
        self._pass_on()
        while (left := deadline - time.monotonic()) > 0:
            if take_signal(min(left, _TICK)) in STOP_SIGNALS:
                raise Told
            assert self._ray is not None  # noqa: S101 - it was started
            if (returncode := reap_children(self._ray)) is not None:
                raise CannotGoOn(f"Ray has ended (exit code {returncode}): the lines above, or {self._logs}")

    def _pass_on(self) -> None:
        """Write into our own log what engines and replicas have said: that is where one looks for it."""
        text = "".join(f"{line}\n" for line in self._words.fresh())
        with contextlib.suppress(OSError):  # nobody listens any more
            sys.stdout.write(text)
            sys.stdout.flush()

    @property
    def _logs(self) -> str:
        return f"its logs in {self._node.temp}/session_latest/logs, say why"

    def _end(self) -> None:
        """End what Ray Serve runs, open answers last, and then Ray."""
        if self._ray is None or reap_children(self._ray) is not None:
            return
        if self._deployed:
            self._undeploy()
        self._ray.terminate()
        # A box that leaves waits for what runs on it to move; the head has ended all that by now.
        leaves = self._node.drain_timeout if self._node.joins is not None else 0.0
        self._until(lambda: self._ray is None or reap_children(self._ray) is not None, leaves + _RAY_ENDS)

    def _undeploy(self) -> None:
        try:
            self._cluster.undeploy()
        except ClusterSilent:
            return

        def is_over() -> bool:
            try:
                return not self._cluster.applications()
            except ClusterSilent:
                return True

        self._until(is_over, self._node.drain_timeout + 1.0)

    @staticmethod
    def _until(done: Callable[[], bool], seconds: float) -> None:
        """Wait until something is done; a second stop signal, or the end of the patience, ends the wait."""
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            if take_signal(_TICK) in STOP_SIGNALS:
                return

    def _say_again(self, line: str) -> None:
        """Say what is being waited for, when it changes and now and then."""
        said, at = self._said
        if line and (line != said or time.monotonic() - at >= _SPEAK_EVERY):
            self._said = (line, time.monotonic())
            _say(line)


def _described(applications: Mapping[str, Application]) -> Iterator[str]:
    for name, application in applications.items():
        parts = ", ".join(f"{part} {state.lower()}" for part, (state, _) in application.deployments.items())
        yield f"{name} is {application.state.lower()}" + (f" ({parts})" if parts else "")


def _why(application: Application) -> str:
    """Give the last words of an application that did not start: Python ends with what went wrong."""
    said = [application.message, *(message for _, message in application.deployments.values())]
    lines = [line.strip() for text in said for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if _ERROR.match(line)]
    return (telling or lines or ["Ray does not say why"])[-1][:500]


def _forget_old_sessions(node: Node) -> None:
    """Remove what Ray's earlier sessions left, but for the logs of the last ones."""
    sessions = sorted(
        path for path in node.temp.glob("session_2*") if path.is_dir() and not path.is_symlink()
    )
    for path in sessions[: 1 - _SESSIONS]:
        shutil.rmtree(path, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _say(line: str) -> None:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    with contextlib.suppress(OSError):  # nobody listens any more: supervisord was killed
        print(f"{stamp} vllm-stack ray: {line}", flush=True)
