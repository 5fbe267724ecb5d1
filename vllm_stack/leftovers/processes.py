"""Processes that an earlier life of a program left behind, and their end.

A SIGKILLed vLLM API server leaves EngineCore and its workers alive with the GPU's memory
(vllm#55510). They cannot be found by their environment alone: setproctitle writes over it. What
still tells them after any kill is their title (VLLM_PROCESS_NAME_PREFIX), the private working
directory they were started in, and, for those that left both, the environment or the process
group of the life that started them. Nothing is ever found by a bare name.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vllm_stack.layout import Layout, life_record
from vllm_stack.process_identity import birth
from vllm_stack.program import boot_id
from vllm_stack.records.record import read_record, write_record

# Not VLLM_...: vLLM warns of every variable with that prefix that it does not know.
MARKER = "STACK_PROGRAM"
# Seconds that Python's resource tracker may go on when all it served are dead: it ends by itself
# then, and removes their shared memory and semaphores first.
JANITOR_GRACE = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What the processes of one program have in common."""

    title: str
    box: Path
    life: Path

    @classmethod
    def of(cls, layout: Layout, name: str) -> Identity:
        """Give that of a program of the stack in `layout`."""
        return cls(layout.process_title(name), layout.box(name), life_record(layout.state, name))

    def record_life(self) -> None:
        """Note this process as the leader of the group its descendants will be in.

        supervisord makes every program a group leader; run by hand it may be a guest in another's.
        """
        me = psutil.Process()
        if os.getpgid(0) != me.pid:
            self.life.unlink(missing_ok=True)
            return
        life = {"boot": boot_id(), "group": me.pid, "started": me.create_time(), "parent": _parent()}
        write_record(self.life, life)

    def forget_life(self) -> None:
        """Take the note back: this life came to its end, and nothing of it is left."""
        self.life.unlink(missing_ok=True)

    def last_group(self) -> tuple[int, float] | None:
        """Give the process group of the last life and when it began, if it was in this boot."""
        life = self._last_life()
        try:
            return (int(life["group"]), float(life["started"])) if life else None
        except (ValueError, KeyError, TypeError):
            return None

    def cut_short(self) -> float | None:
        """Give when the last life began (Unix time) if our parent started it and it was killed.

        A life that ends by itself takes its note back; after one that another supervisord started,
        the start is a deliberate one.
        """
        last = self.last_group()
        return last[1] if last and self._last_life().get("parent") == _parent() else None

    def _last_life(self) -> dict[str, Any]:
        life = read_record(self.life)
        return life if life.get("boot") == boot_id() else {}


def _parent() -> list[float]:
    return birth(os.getppid())


def find_leftovers(identity: Identity) -> list[psutil.Process]:
    """Find the program's processes that are not this process or one it descends from."""
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}
    group = identity.last_group()
    return [
        process
        for process in _own_processes()
        if process.pid not in spared and _belongs(process, identity, group)
    ]


def sweep(identity: Identity, say: Callable[[str], object], timeout: float = 10.0) -> bool:
    """Kill the leftovers of earlier lives and wait until they are gone; False if some stay."""
    begun = time.monotonic()
    deadline = begun + timeout
    told: set[int] = set()
    while leftovers := find_leftovers(identity):
        for process in leftovers:
            with contextlib.suppress(psutil.NoSuchProcess):
                if is_janitor(process) and time.monotonic() < begun + JANITOR_GRACE:
                    continue
                if process.pid not in told:
                    told.add(process.pid)
                    words = _describe(process)
                    say(f"killing process {process.pid} ({words}), left behind by an earlier life")
                process.kill()
        _, alive = psutil.wait_procs(leftovers, timeout=min(1.0, timeout))
        if alive and time.monotonic() > deadline:
            pids = ", ".join(str(process.pid) for process in alive)
            say(f"process {pids} does not die after SIGKILL; the kernel holds it")
            return False
    return True


def is_janitor(process: psutil.Process) -> bool:
    """Tell whether it is the resource tracker of a Python program (`multiprocessing.resource_tracker`)."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def lives(process: psutil.Process) -> bool:
    """Tell whether this very process still runs: a zombie has ended, and its number may be used again."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def _own_processes() -> Iterator[psutil.Process]:
    uid = os.getuid()
    for process in psutil.process_iter():
        try:
            if process.uids().real == uid and lives(process):
                yield process
        except psutil.Error:
            continue


def _belongs(process: psutil.Process, identity: Identity, group: tuple[int, float] | None) -> bool:
    try:
        if _is_login_shell(process):
            return False
        return (
            _has_title(process, identity.title)
            or _is_inside(process, identity.box)
            or process.environ().get(MARKER) == identity.title
            or (group is not None and _is_of_group(process, *group))
        )
    except (psutil.Error, ProcessLookupError):  # it has just ended, or is none that we may look at
        return False


def _has_title(process: psutil.Process, title: str) -> bool:
    words = process.cmdline()
    return bool(words) and (words[0] == title or words[0].startswith(f"{title}::"))


def _is_inside(process: psutil.Process, box: Path) -> bool:
    directory = process.cwd().removesuffix(" (deleted)")
    return directory == str(box) or directory.startswith(f"{box}/")


def _is_of_group(process: psutil.Process, group: int, started: float) -> bool:
    """Tell whether `process` is a member of a group whose leader began at `started` and is gone.

    A living leader that began at another time means that the number was used again.
    """
    if os.getpgid(process.pid) != group or process.create_time() < started - 1:
        return False
    try:
        return abs(psutil.Process(group).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return True


def _is_login_shell(process: psutil.Process) -> bool:
    """Spare a person's shell that stands in the directory: a session leader with a terminal."""
    return os.getsid(process.pid) == process.pid and process.terminal() is not None


def _describe(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80].rstrip() or process.name()
    except psutil.Error:
        return "gone"
