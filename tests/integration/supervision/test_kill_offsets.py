"""A signal to every kind of process, at every moment of its life: nothing is left, and all comes back.

Offsets are counted from what was observed (a process exists, the server listens, the proxy calls it
ready), not from a start on the clock: then they hit the same moment on a slow machine too. Programs
that come back are hit again and again in one stack; several stacks run at once, because it is mostly
waiting. Who is left is told by three witnesses (`tests.support.witnesses`), and the last tests here
show that each of them can see.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from tests.integration.conftest import (
    BIN,
    CHAT,
    FAKE_VLLM,
    Play,
    Scenario,
    Stack,
    StackFactory,
    ask,
    chat,
    gone,
    run_at_once,
)
from tests.support.polling import throughout, until
from tests.support.ports import free_port
from tests.support.processes import ProcessLedger, is_alive
from tests.support.witnesses import Witnesses, children, family, group_of, listens, words

pytestmark = pytest.mark.timeout(400)  # a scenario waits for those that were begun before it

KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT

# Bounds in seconds; generous, because the machine may be busy with other tests.
GONE = 15.0  # from a blow to the end of all it takes along: a deaf engine has 3 s of grace
BACK = 40.0  # until it is ready again: supervisord's own pause grows with blows to a starting program
ENDED = 10.0  # from a signal to supervisord to its end
# From the death of a server to the last moment the admin door may call it ready.
HONEST = 1.0

# Where a worker's processes are in its tree, from the root down, and what an anchor can be besides.
WORKER_PARTS = ("wrapper", "server", "engine", "tensor_parallel")
LATE = ("serves", "ready")


@dataclass(frozen=True, slots=True)
class Blow:
    """A signal to one process, `offset` seconds after its anchor was seen."""

    victim: str
    signum: signal.Signals
    anchor: str
    offset: float

    def __str__(self) -> str:
        return f"{self.signum.name} to {self.victim} {self.offset:g} s after {self.anchor}"

    @property
    def is_late(self) -> bool:
        """Whether it falls on a program at rest; any other needs one that is just starting."""
        return self.anchor in LATE


def volley(victim: str, anchor: str, **offsets: Sequence[float]) -> list[Blow]:
    """Make blows; `KILL=(0, 5)` is in milliseconds."""
    return [
        Blow(victim, signal.Signals[f"SIG{name}"], anchor, milliseconds / 1000)
        for name, several in offsets.items()
        for milliseconds in several
    ]


DENSE = (0, 5, 10, 20, 40, 80, 160, 320)

WRAPPER = [
    *volley("wrapper", "wrapper", KILL=DENSE, TERM=(0, 20, 80, 160), INT=(10, 40)),
    *volley("wrapper", "server", KILL=(0, 5, 20, 80), TERM=(0, 80), INT=(20,)),
    *volley("wrapper", "engine", KILL=(0, 20, 80, 320), TERM=(40,), INT=(160,)),
    *volley("wrapper", "serves", KILL=(0, 20, 80), TERM=(10,)),
    *volley("wrapper", "ready", KILL=(0, 40, 320, 1500), TERM=(0, 160), INT=(20, 1000)),
]
SERVER = [
    *volley("server", "server", KILL=DENSE, TERM=(0, 40, 160), INT=(20, 80)),
    *volley("server", "engine", KILL=(0, 20, 80, 320), TERM=(80,), INT=(0,)),
    *volley("server", "serves", KILL=(0, 20, 80), TERM=(10,)),
    *volley("server", "ready", KILL=(0, 40, 320, 1500), TERM=(0, 160), INT=(20, 1000)),
]
ENGINE = [
    *volley("engine", "engine", KILL=DENSE, TERM=(0, 40, 160), INT=(20, 80)),
    *volley("engine", "serves", KILL=(0, 20, 80), TERM=(10,)),
    *volley("engine", "ready", KILL=(0, 40, 320, 1500), TERM=(0, 160), INT=(20, 1000)),
]
TENSOR_PARALLEL = [
    *volley("tensor_parallel", "tensor_parallel", KILL=(0, 5, 20, 80), TERM=(0, 80), INT=(20,)),
    *volley("tensor_parallel", "serves", KILL=(0, 40), TERM=(10,)),
    *volley("tensor_parallel", "ready", KILL=(0, 320, 1500), TERM=(0, 160), INT=(20,)),
]
MASTER = [
    *volley("master", "master", KILL=(0, 10, 160), TERM=(0, 80), INT=(20,)),
    *volley("master", "process", KILL=(0, 40), TERM=(20,), INT=(80,)),
    *volley("master", "ready", KILL=(0, 320), TERM=(40,), INT=(20, 160)),
]
PROCESS = [
    *volley("process", "process", KILL=(0, 20, 80, 160), TERM=(0, 40, 320), INT=(10, 160)),
    *volley("process", "ready", KILL=(0, 320), TERM=(0, 320), INT=(40, 160)),
]
SUPERVISORD = [
    *volley("supervisord", "its word", KILL=(0, 1000), TERM=(0, 40), INT=(0, 1020)),
    *volley("supervisord", "wrapper", KILL=(0, 10, 40, 160), TERM=(0, 20, 80), INT=(5, 40, 320)),
    *volley("supervisord", "server", KILL=(0, 40), TERM=(0, 80), INT=(0, 160)),
    *volley("supervisord", "engine", KILL=(0, 80), TERM=(20,), INT=(0, 320)),
    *volley("supervisord", "ready", KILL=(0, 320), TERM=(40,), INT=(0, 1000)),
]
PLAN = {
    "supervisord": SUPERVISORD,
    "wrapper": WRAPPER,
    "server": SERVER,
    "engine": ENGINE,
    "tensor_parallel": TENSOR_PARALLEL,
    "master": MASTER,
    "process": PROCESS,
}


def rounds(blows: Sequence[Blow], lanes: int) -> list[list[list[Blow]]]:
    """Deal blows to `lanes` targets, as rounds: one to a program at rest, then some to its next lives.

    So every early blow meets a life that is just starting, and every round ends with all back. The
    order is mixed, the same way every time.
    """
    mixed = random.Random(1).sample(blows, len(blows))
    late = [blow for blow in mixed if blow.is_late]
    early = [blow for blow in mixed if not blow.is_late]
    dealt = [[blow, *early[number :: len(late)]] for number, blow in enumerate(late)]
    return [dealt[lane::lanes] for lane in range(lanes)]


# ------------------------------------------------------------------ what is hit


class Target(Protocol):
    """A program that comes back, and how to see it."""

    witnesses: Witnesses

    def look(self) -> dict[str, int]:
        """Give the processes that are there now, by what they are, from the root down."""

    def is_ready(self) -> bool:
        """Tell whether the door calls it ready."""

    def serves(self) -> bool:
        """Tell whether it listens."""


def worker_parts(supervisord: int, spec: str) -> dict[str, int]:
    """Find one worker's processes by who is whose child.

    A child that was just forked still has its parent's words; orphans that the wrapper adopted, and
    Python's resource tracker, have words of their own.
    """
    marks = {
        "wrapper": (spec,),
        "server": ("fake_vllm.py", spec),
        "engine": ("fake_engine.py", "::EngineCore"),
        "tensor_parallel": ("fake_engine.py", "::"),
    }
    found: dict[str, int] = {}
    parent = supervisord
    for part, any_of in marks.items():
        pids = (pid for pid in children(parent) if any(mark in words(pid) for mark in any_of))
        if (pid := next(pids, None)) is None:
            break
        found[part] = parent = pid
    return found


class Worker:
    """One worker of a stack."""

    def __init__(self, stack: Stack, index: int) -> None:
        self._stack, self._index = stack, index
        self._name = stack.names[index]
        port = stack.ports[index]
        assert isinstance(port, int)
        self._port = port
        layout = stack.layout
        self.witnesses = Witnesses(layout.box(self._name), layout.process_title(self._name), (port,))
        # When a server was last seen alive and listening, by the monotonic clock, and which one.
        self._heard = 0.0
        self._server = 0

    def look(self) -> dict[str, int]:
        """Find the processes, and note when a server was last there to be called ready."""
        assert self._stack.supervisord is not None
        now = time.monotonic()
        parts = worker_parts(self._stack.supervisord.pid, f"{self._name}.json")
        if "server" in parts and (parts["server"] == self._server or self.serves()):
            self._heard, self._server = now, parts["server"]
        return parts

    def serves(self) -> bool:
        """Connect and hang up with a reset, which leaves nothing to wait for on either side."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return probe.connect_ex(("127.0.0.1", self._port)) == 0

    def is_ready(self) -> bool:
        """Also see to it that the admin door does not call a dead server ready."""
        now = time.monotonic()
        if self._stack.workers_seen()[self._name] != "ready":
            return False
        parts = self.look()
        if parts.get("server") != self._server and now - self._heard > HONEST:
            silent = now - self._heard
            raise Never(f"/workers says ready, and for {silent:.2f} s no server listened; there is {parts}")
        return parts.get("server") == self._server and "tensor_parallel" in parts


class Proxy:
    """The proxy of a stack: gunicorn's master and its one process."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        layout = stack.layout
        ports = (stack.door, stack.admin)
        self.witnesses = Witnesses(layout.box("proxy"), layout.process_title("proxy"), ports)

    def look(self) -> dict[str, int]:
        assert self._stack.supervisord is not None
        programs = children(self._stack.supervisord.pid)
        # Not before its exec: until then it runs supervisord's signal handlers, which lose a TERM.
        master = next(
            (pid for pid in programs if re.search(r"proxy\.json|-m gunicorn|gunicorn: ", words(pid))), None
        )
        if master is None:
            return {}
        processes = children(master)
        return {"master": master} | ({"process": processes[0]} if processes else {})

    def serves(self) -> bool:
        return listens(self._stack.door)

    def is_ready(self) -> bool:
        return self._stack.is_ready()


class Never(BaseException):
    """What must not be at any moment was seen; no poll may take it for "not yet"."""


# ------------------------------------------------------------------ the hitting


class Siege:
    """Blows to one target, one after another; what they doomed must go, and all must come back."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.struck: list[Blow] = []
        # Every process that a blow was to end, and the groups they were in.
        self._doomed: set[int] = set()
        self._groups: set[int] = set()
        self._unjudged: set[int] = set()
        # Wrappers that were not killed themselves, and all below them: they are the last to go.
        self._trees: list[tuple[int, set[int]]] = []

    def play(self, all_rounds: Iterable[Sequence[Blow]]) -> None:
        """Strike and judge; what goes wrong names the blows that led to it."""
        for blows in all_rounds:
            try:
                for blow in blows:
                    self._strike(blow)
                self._await_back()
            except BaseException as error:
                error.add_note(f"in the round {[str(blow) for blow in blows]}")
                raise

    def _strike(self, blow: Blow) -> None:
        if blow.anchor not in ("wrapper", "master"):
            # Else it must be quick: then the next judgement holds for two blows.
            self._judge()
        every = 0.02 if blow.anchor == "ready" else 0.003
        parts = until(lambda: self._reached(blow.anchor), BACK, f"{blow.anchor} is reached", every)
        time.sleep(blow.offset)  # the offset is the subject
        parts |= self._target.look()  # a process in the middle of its exec has no words to be found by
        victim = parts[blow.victim]
        if blow.victim == "server" and blow.signum == INT:
            # Between fork and exec it lets a Ctrl-C go: that one has reached the wrapper, too.
            until(
                lambda: words(victim) != words(parts["wrapper"]), GONE, "the server is executed", every=0.001
            )
        doomed = {victim} if blow.victim == "process" else family(next(iter(parts.values())))
        self._groups |= {group_of(pid) for pid in doomed} - {0}
        os.kill(victim, blow.signum)
        if "wrapper" in parts and (blow.victim, blow.signum) != ("wrapper", KILL):
            self._trees.append((parts["wrapper"], doomed))
        self._doomed |= doomed
        self._unjudged |= doomed
        self.struck.append(blow)

    def _reached(self, anchor: str) -> dict[str, int]:
        """Give the processes of a life that was not hit yet and has come as far as `anchor`, or {}."""
        parts = self._target.look()
        if not parts or not self._doomed.isdisjoint(parts.values()):
            return {}
        if anchor == "ready":
            return parts if self._target.is_ready() else {}
        if anchor == "serves":
            return parts if self._target.serves() else {}
        return parts if anchor in parts else {}

    def _judge(self) -> None:
        """See all that was doomed go, and nothing stay that does not belong to the present life."""
        if not self._unjudged:
            return
        until(self._is_gone, GONE, f"{self.struck[-1]}: what was hit is gone", every=0.04)
        until(lambda: not (left := self._left()) or unless(left), GONE, "no witness sees a leftover")
        self._unjudged.clear()
        self._trees.clear()

    def _left(self) -> dict[str, list[str]]:
        def present() -> set[int]:
            root = next(iter(self._target.look().values()), 0)
            return (family(root) if root else set()) - self._doomed

        return self._target.witnesses.see(self._groups, present)

    def _await_back(self) -> None:
        until(lambda: self._reached("ready"), BACK, "it is ready again", every=0.05)
        self._judge()

    def _is_gone(self) -> bool:
        """Tell whether all that was doomed has ended; the door must not call ready what is dead."""
        with contextlib.suppress(Exception):  # a proxy that is down says nothing
            self._target.is_ready()
        for wrapper, tree in self._trees:
            if not is_alive(wrapper) and (left := [words(pid) for pid in tree if is_alive(pid)]):
                raise Never(f"{self.struck[-1]}: the wrapper has ended before its tree: {left}")
        return not any(map(is_alive, self._unjudged))


def unless(left: object) -> bool:
    raise LookupError(str(left))


def besiege(targets: Sequence[Target], blows: Sequence[Blow]) -> None:
    """Hit all targets at once, each in its own thread, until every blow has fallen."""
    sieges = [Siege(target) for target in targets]
    dealt = rounds(blows, len(targets))
    cases = {f"target {number}": partial(siege.play, dealt[number]) for number, siege in enumerate(sieges)}
    assert run_at_once(cases, len(targets)) == {}
    struck = [blow for siege in sieges for blow in siege.struck]
    assert sorted(map(str, struck)) == sorted(map(str, blows))


QUICK = {"LOAD_SECONDS": 0.3, "ENGINE_DEATH_SECONDS": 0.2, "ENGINE_GRACE": 0.3}
DEAF = {"SETSID": 1, "ENGINE_IGNORES_TERM": 1, "ENGINE_HOLDS_PORT": 1}


def wrappers_and_servers_come_back_and_leave_nothing(stack: StackFactory) -> None:
    """Two of the four workers have engines that left the group, hear no TERM and hold the port."""
    one = stack(workers=4, restart_delay=0.3)
    one.set_fake(**QUICK)
    for index in (2, 3):
        one.set_fake(index, **DEAF)
    one.up()
    besiege([Worker(one, index) for index in range(4)], WRAPPER + SERVER)


def engines_and_their_workers_take_the_server_along_and_it_comes_back(stack: StackFactory) -> None:
    one = stack(workers=3, restart_delay=0.3)
    one.set_fake(**QUICK)
    one.up()
    besiege([Worker(one, index) for index in range(3)], ENGINE + TENSOR_PARALLEL)


def gunicorn_and_its_processes_come_back_and_no_vllm_notices(stack: StackFactory) -> None:
    def case(one: Stack, blows: Sequence[Blow]) -> None:
        one.up()
        tree = one.tree()
        besiege([Proxy(one)], blows)
        assert one.tree() == tree
        assert one.failure() == {}
        assert ask(one.door, "POST", CHAT, chat())[0] == 200

    cases = {"master": partial(case, stack(), MASTER), "process": partial(case, stack(), PROCESS)}
    assert run_at_once(cases) == {}


def of_the_stack(one: Stack) -> Witnesses:
    """Make witnesses of everything that a stack of workers on ports has."""
    ports = (*(port for port in one.ports if isinstance(port, int)), one.door, one.admin)
    return Witnesses(one.layout.out, f"vllm-stack:{one.layout.stack_name}:", ports)


class Fall:
    """Starts of one stack, each ended by a signal to supervisord."""

    def __init__(self, one: Stack) -> None:
        self._one = one
        self._spec = f"{one.names[0]}.json"
        self._witnesses = of_the_stack(one)
        self.struck: list[Blow] = []

    def play(self, blows: Sequence[Blow]) -> None:
        for blow in blows:
            try:
                self._fall(blow)
            except BaseException as error:
                error.add_note(f"after {blow}")
                raise
            self.struck.append(blow)

    def _fall(self, blow: Blow) -> None:
        before = self._one.log("supervisord")
        supervisord = self._one.start().supervisord
        assert supervisord is not None
        until(lambda: self._reached(blow.anchor, before), BACK, f"{blow.anchor} is reached", every=0.002)
        time.sleep(blow.offset)  # the offset is the subject
        self._one.ledger.remember()
        groups = {group_of(pid) for pid in family(supervisord.pid)} - {0}
        supervisord.send_signal(blow.signum)
        until(lambda: supervisord.poll() is not None, ENDED, "supervisord ended")
        # After an orderly stop nobody is left; after a kill all go by themselves, in bounded time.
        until(
            lambda: not (left := self._witnesses.see(groups)) or unless(left),
            GONE if blow.signum == KILL else 0.5,
            "no witness sees a leftover",
        )
        assert "SIGKILL" not in self._one.log("supervisord").removeprefix(before)

    def _reached(self, anchor: str, before: str) -> bool:
        assert self._one.supervisord is not None
        if anchor == "its word":
            return "supervisord started" in self._one.log("supervisord").removeprefix(before)
        if anchor == "ready":
            return self._one.is_ready()
        return anchor in worker_parts(self._one.supervisord.pid, self._spec)


def fall(make: StackFactory, blows: Sequence[Blow], **settings: float) -> None:
    one = make(restart_delay=0.3)
    one.set_fake(None, **QUICK, **settings)
    assert one.render() == 0
    siege = Fall(one)
    siege.play(blows)
    assert siege.struck == blows
    one.start()
    until(one.is_ready, BACK, "after all that the next start serves")


def everything_ends_with_supervisord(stack: StackFactory) -> None:
    fall(stack, SUPERVISORD[::2])


def everything_ends_with_supervisord_deaf_engines_too(stack: StackFactory) -> None:
    fall(stack, SUPERVISORD[1::2], **DEAF)


# ------------------------------------------------------------------ all at once


def shoot(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # died of an earlier shot
            os.kill(pid, signal.SIGKILL)


def freeze_and_shoot(pids: Sequence[int]) -> None:
    """Stop everything first, so that nobody can react to the death of another.

    Children die before their parents: were a wrapper gone while its server is still stopped, the
    kernel would send the server's group, now orphaned, SIGHUP and SIGCONT (POSIX, _exit), which
    ends an engine in that group, and wakes gunicorn where supervisord went first.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    shoot(reversed(pids))


def all_in_order_of_birth(pids: list[int], engines: set[int]) -> None:
    shoot(pids)


def all_in_reverse(pids: list[int], engines: set[int]) -> None:
    shoot(reversed(pids))


def all_while_they_are_stopped(pids: list[int], engines: set[int]) -> None:
    freeze_and_shoot(pids)


def all_but_the_engines(pids: list[int], engines: set[int]) -> None:
    freeze_and_shoot([pid for pid in pids if pid not in engines])


Massacre = Callable[[list[int], set[int]], None]


def test_after_everything_was_killed_at_once_the_next_start_sweeps_and_serves(tmp_path: Path) -> None:
    """As when the machine loses its processes, but not its files: nobody could write a last word."""

    def case(massacre: Massacre) -> None:
        with Stack(tmp_path / massacre.__name__ / "out", workers=2, restart_delay=0.3) as one:
            one.set_fake(None, **QUICK)
            one.set_fake(1, **DEAF)
            one.up()
            assert one.supervisord is not None
            old = one.supervisord.pid
            pids = sorted(family(old))
            groups = {group_of(pid) for pid in pids}
            trees = [one.tree(0), one.tree(1)]
            engines = {pid for tree in trees for pid in (tree.engine, tree.tensor_parallel)}
            witnesses = of_the_stack(one)
            massacre(pids, engines)
            spared = engines if massacre is all_but_the_engines else set()
            until(gone(*set(pids) - spared), 5, "what was shot is gone")
            if spared:
                throughout(lambda: all(map(is_alive, spared)), 0.3, "the engines stay")
                seen = witnesses.see(groups)
                assert seen.keys() == {"identity", "group", "port"}, seen
            elif massacre is all_while_they_are_stopped:
                assert witnesses.see(groups) == {}
            one.set_fake(1, **dict.fromkeys(DEAF, 0))
            one.start()
            until(one.is_ready, BACK, "the next start serves")
            new = one.supervisord.pid
            until(
                lambda: not (left := witnesses.see(groups, lambda: family(new))) or unless(left), 2, "clean"
            )
            assert gone(*pids)()
            assert ask(one.door, "POST", CHAT, chat())[0] == 200

    manners: list[Massacre] = [
        all_in_order_of_birth,
        all_in_reverse,
        all_while_they_are_stopped,
        all_but_the_engines,
    ]
    assert run_at_once({manner.__name__: partial(case, manner) for manner in manners}) == {}


# ------------------------------------------------------------------ a crash loop


def crash_loop(make: StackFactory, delay: float) -> Stack:
    """Start a worker whose server ends at once, every time."""
    one = make(restart_delay=delay, log_starts=True)
    one.set_fake(EXIT_AT=0, EXIT_CODE=1)
    assert one.render() == 0
    one.start()
    until(one.answers, 15, "supervisord answers")
    return one


def starts_of_a_crash_loop_keep_their_distance_and_it_never_becomes_fatal(stack: StackFactory) -> None:
    """Six starts, and the states are looked at all the time."""
    one = crash_loop(stack, delay=1.0)
    seen: set[str] = set()

    def six_starts() -> bool:
        seen.add(one.state("worker-0"))
        return len(one.starts()) >= 6

    until(six_starts, 60, "six starts", every=0.01)
    times = [up for up, _ in one.starts()]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 1.0
    assert "STARTING" in seen
    assert seen <= {"STARTING", "RUNNING", "EXITED", "BACKOFF"}, seen
    assert "FATAL" not in one.log("supervisord")


def stops_during_the_delay_take_no_second_and_the_next_start_does_not_wait(stack: StackFactory) -> None:
    one = crash_loop(stack, delay=25.0)
    waits, stopped = "starting it again in", "told to stop while waiting"
    took = []

    def waiting() -> str:
        since = one.log("worker-0").rpartition(stopped)[2]
        return since if waits in since else ""

    for _ in range(3):
        # By its own words since the last stop, which hold on a slow machine too.
        last = until(waiting, 25, "it waits")
        assert waits not in last.partition("started vLLM on")[0], "a start after a stop waited"
        begun = time.monotonic()
        one.rpc("stopProcess", "workers:worker-0")
        took.append(time.monotonic() - begun)
        assert one.state("worker-0") == "STOPPED"
        assert one.failure() == {}
        one.rpc("startProcess", "workers:worker-0", False)

    assert min(took) < 1, took
    assert max(took) < 4, took


# ------------------------------------------------------------------ that all this can fail


CONTROL = """\
[supervisord]
nodaemon=true
logfile={home}/supervisord.log
pidfile={home}/supervisord.pid
[program:vllm]
command={python} {fake} serve m --host 127.0.0.1 --port {port}
directory={home}/box
autorestart=false
startsecs=0
stopasgroup=true
killasgroup=true
"""


@pytest.mark.parametrize("moment", ["kill -9 of the API server", "a stop, and a deaf engine"])
def test_control_without_the_wrapper_all_three_witnesses_see_what_is_left(
    tmp_path: Path, moment: str
) -> None:
    """A plain supervisord, configured as people do: were the tests above blind, this one would fail."""
    port, home = free_port(), tmp_path / "control"
    (home / "box").mkdir(parents=True)
    conf = home / "supervisord.conf"
    conf.write_text(CONTROL.format(home=home, python=sys.executable, fake=FAKE_VLLM, port=port))
    prefix = f"control-{port}"
    killed = moment.startswith("kill")
    settings = {"ENGINE_HOLDS_PORT": 1} | ({} if killed else {**DEAF, "LEAVE_ENGINE": 1})
    env = {f"FAKE_VLLM_{name}": str(value) for name, value in settings.items()}
    env = {**os.environ, **env, "VLLM_PROCESS_NAME_PREFIX": prefix}
    witnesses = Witnesses(home / "box", prefix, (port,))
    ledger = ProcessLedger(home, title_prefix=prefix)
    supervisord = ledger.start([BIN / "supervisord", "-c", conf], env=env, cwd=home)
    try:
        until(lambda: ask(port)[0] == 200, 20, "the fake serves")
        told = json.loads(ask(port, path="/fake/state")[1])
        groups = {group_of(pid) for pid in family(told["pid"])}
        if killed:
            os.kill(told["pid"], signal.SIGKILL)
        else:
            supervisord.terminate()
            assert supervisord.wait(10) == 0
        until(gone(told["pid"]), 5, "the API server is gone")
        orphans = (told["engine_pid"], told["worker_pid"])
        throughout(lambda: all(map(is_alive, orphans)), 0.7, "its engine stays")
        left = witnesses.see(groups)
        assert left.keys() == {"identity", "group", "port"}, left
        for name, lines in left.items():
            assert any("::EngineCore" in line for line in lines), (name, lines)
    finally:
        strays = ledger.end(settle=0)
    assert len([stray for stray in strays if "left behind" in stray]) >= 2, (
        "the ledger of all tests sees them"
    )
    assert witnesses.see(groups) == {}


def test_nobody_has_thinned_out_the_cases() -> None:
    """At least a hundred, every kind of process, every signal to each, and no case twice."""
    cases = [blow for blows in PLAN.values() for blow in blows]
    assert len(cases) == len(set(cases)) >= 100
    for kind, blows in PLAN.items():
        assert {blow.victim for blow in blows} == {kind}
        assert {blow.signum for blow in blows} == {KILL, TERM, INT}
        assert {blow.anchor for blow in blows} & {"ready"}
        assert min(blow.offset for blow in blows) == 0
    assert max(blow.offset for blow in cases) > 1


def test_scenario(scenario: Scenario, play: Play) -> None:
    play(scenario)
