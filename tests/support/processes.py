"""Start processes in tests, end every one of them, and fail the test that leaves one behind.

Leftovers are looked for in five ways at once, because each is blind somewhere: descendants (lost
when a parent dies first), the session and group of what was started (left by setsid), the
working directory, the command line (overwritten by setproctitle) and the title's prefix.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.support.polling import until


def is_alive(pid: int, created: float | None = None) -> bool:
    """Tell whether `pid` runs; a zombie does not, nor does a later process with its number."""
    try:
        process = psutil.Process(pid)
        if created is not None and abs(process.create_time() - created) > 0.05:
            return False
        return _lives(process)
    except psutil.NoSuchProcess:
        return False


def group_members(pgid: int) -> list[int]:
    """Return the pids in a process group, zombies excluded."""
    return [pid for pid in psutil.pids() if _id_of(os.getpgid, pid) == pgid and is_alive(pid)]


def listeners(port: int) -> list[int | None]:
    """Return who listens on a TCP port, on any address; None for a pid we may not know."""
    connections = psutil.net_connections("tcp")
    listening = [c for c in connections if c.status == psutil.CONN_LISTEN]
    return [c.pid for c in listening if c.laddr[-1:] == (port,)]


def find_by_directory(directory: Path, title_prefix: str | None = None) -> list[psutil.Process]:
    """Find our own processes that belong to `directory`, this one and its ancestors excepted.

    They work in it or below, name it on their command line, or have a title that begins with
    `title_prefix` (VLLM_PROCESS_NAME_PREFIX of the workers under test).
    """
    names = "|".join(re.escape(str(path)) for path in {directory, directory.resolve()})
    mention = re.compile(rf"(?:{names})(?![\w.-])")
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for pid in set(psutil.pids()) - spared:
        words, place = _command_line(pid), _working_directory(pid)
        titled = title_prefix is not None and words.startswith(title_prefix)
        inside = place is not None and place.is_relative_to(directory.resolve())
        if titled or inside or mention.search(words):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.uids().real == os.getuid() and _lives(process):
                    found.append(process)
    return found


class ProcessLedger:
    """What a test started; as a context manager it ends all of it and fails on strays.

    A stray is what did not end by itself: a started process that had to be killed, and whatever
    else was there, `settle` seconds after the started processes had got SIGTERM and ended. A test
    that leaves strays on purpose calls `end()` and looks at the list.
    """

    def __init__(
        self,
        *directories: Path,
        title_prefix: str | None = None,
        grace: float = 10.0,
        settle: float = 2.0,
    ) -> None:
        self.directories = list(directories)
        self.title_prefix = title_prefix
        self.grace = grace
        self.settle = settle
        self._roots: list[psutil.Process] = []
        self._children: list[subprocess.Popen[bytes]] = []
        self._sessions: dict[int, float] = {}
        self._known: set[psutil.Process] = set()

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path | None = None,
        new_session: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start and record a process; its output is appended to `log`, or dropped."""
        with open(log or os.devnull, "ab") as output:
            child = subprocess.Popen(
                [str(word) for word in argv],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=new_session,
            )
        self.adopt(child)
        return child

    def adopt(self, child: subprocess.Popen[bytes]) -> None:
        """Answer for a child that the test started itself."""
        self._children.append(child)
        self.record(child.pid)

    def record(self, pid: int) -> None:
        """Answer for a process that somebody else started."""
        try:
            process = psutil.Process(pid)
            self._roots.append(process)
            self._known.add(process)
            # Only where it leads its own session may we take the session's members for its.
            if os.getsid(pid) == pid:
                self._sessions[pid] = process.create_time()
        except (psutil.NoSuchProcess, ProcessLookupError):
            return

    def watch(self, directory: Path) -> None:
        """Answer for every process that belongs to `directory` as well."""
        self.directories.append(directory)

    def remember(self) -> None:
        """Note the descendants there are now; do it before killing a parent on purpose."""
        for process in list(self._known):
            try:
                self._known.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue

    def alive(self) -> list[psutil.Process]:
        """Return all that runs and is ours to answer for."""
        self._reap()
        self.remember()
        for pid in psutil.pids():
            led_since = self._sessions.get(_id_of(os.getsid, pid) or 0)
            with contextlib.suppress(psutil.NoSuchProcess):
                if led_since is not None and (process := psutil.Process(pid)).create_time() >= led_since:
                    self._known.add(process)
        for directory in self.directories:
            self._known.update(find_by_directory(directory, self.title_prefix))
        return sorted((p for p in self._known if _lives(p)), key=lambda p: p.pid)

    def end(self, settle: float | None = None) -> list[str]:
        """End everything: TERM to what was started, KILL to all that stays. Return the strays.

        A test that knows that there are strays need not wait `settle` seconds for them to go.
        """
        settle = self.settle if settle is None else settle
        self.remember()
        for root in reversed(self._roots):
            _send(root, signal.SIGTERM)
        stubborn = _wait_for_none(self._living_roots, self.grace)
        strays = [f"{_shown(p)} ignored SIGTERM for {self.grace:g} s" for p in stubborn]
        left = _wait_for_none(self.alive, 0 if stubborn else settle)
        strays += [f"{_shown(p)} was left behind" for p in left if p not in stubborn]

        def kill_all() -> bool:
            remaining = self.alive()
            for process in remaining:
                _send(process, signal.SIGKILL)
            return not remaining

        until(kill_all, 10, "every process of this test is dead")
        return strays

    def _living_roots(self) -> list[psutil.Process]:
        self._reap()
        return [root for root in self._roots if _lives(root)]

    def _reap(self) -> None:
        for child in self._children:
            child.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        strays = self.end()
        if not strays:
            return
        message = "processes left behind:\n  " + "\n  ".join(strays)
        if error is None:
            raise AssertionError(message)
        error.add_note(message)


def _lives(process: psutil.Process) -> bool:
    try:
        dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return not dead and process.is_running()
    except psutil.NoSuchProcess:
        return False


def _id_of(ask: Callable[[int], int], pid: int) -> int | None:
    try:
        return ask(pid)
    except (ProcessLookupError, PermissionError):
        return None


# These two are read straight from /proc: psutil takes ten times as long, and they are polled.


def _command_line(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.replace(b"\0", b" ").decode(errors="replace").strip()


def _working_directory(pid: int) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd").removesuffix(" (deleted)"))
    except OSError:
        return None


def _send(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)  # psutil refuses when the pid belongs to another by now


def _wait_for_none(look: Callable[[], list[psutil.Process]], timeout: float) -> list[psutil.Process]:
    """Poll until `look` finds nothing; return what it found at last."""
    found = look()
    deadline = time.monotonic() + timeout
    while found and time.monotonic() < deadline:
        time.sleep(0.02)
        found = look()
    return found


def _shown(process: psutil.Process) -> str:
    try:
        parent = process.ppid()
    except psutil.NoSuchProcess:
        return f"pid {process.pid}"
    place, words = _working_directory(process.pid), _command_line(process.pid)
    return f"pid {process.pid} (parent {parent}, in {place}): {words[:200]}:"
