"""supervisord as our child, and everything that descends from it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import psutil

from vllm_stack.errors import OutputError, StackError
from vllm_stack.layout import Layout
from vllm_stack.leftovers.processes import lives
from vllm_stack.log_tail import last_lines
from vllm_stack.process_end import describe_end
from vllm_stack.program import (
    die_with_parent,
    parent_is_gone,
    reap_children,
    unblock_in_child,
)


class Supervisord:
    """One supervisord, started by us in a session of its own: no terminal's signal reaches it.

    With `tied` it is told to stop when this process ends, however that happens. What outlives it
    is ours to watch and to end if this process is a subreaper (`program.adopt_orphans`).
    """

    def __init__(self, layout: Layout, tied: bool) -> None:
        """Start it; raises `OutputError` when its output has no place, `StackError` when it cannot run."""
        self._layout = layout
        self._hurried: set[psutil.Process] = set()
        self._not_ours = set(psutil.Process().children())
        parent = os.getpid()

        def prepare() -> None:
            die_with_parent(signal.SIGTERM)
            if parent_is_gone(parent):
                os._exit(1)
            unblock_in_child()

        # With -P no module in the directory we stand in takes the place of a real one; with -s it
        # logs to its file alone, and only what keeps it from starting is left to say.
        argv = [sys.executable, "-P", "-m", "supervisor.supervisord", "-s"]
        try:
            with layout.supervisord_out.open("wb") as output:
                self._process = subprocess.Popen(
                    [*argv, "-c", str(layout.supervisord_conf)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=prepare if tied else None,
                )
        except subprocess.SubprocessError as error:
            raise StackError(f"supervisord cannot be started: {error}") from None
        except OSError as error:
            raise OutputError(f"supervisord cannot be started: {error}") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as `subprocess` gives it; None while it runs, as far as `reap` has seen."""
        return self._process.returncode

    def reap(self) -> int | None:
        """Collect whatever child of ours has ended, adopted ones too; give supervisord's return code."""
        return reap_children(self._process)

    def check(self) -> None:
        """Raise `StackError` with supervisord's last words if it has ended."""
        if self._process.poll() is not None:
            raise StackError(self.epitaph())

    def epitaph(self) -> str:
        """Say in one sentence how it ended, with its last words."""
        returncode = self._process.returncode
        assert returncode is not None  # noqa: S101 - asked only of one that has ended
        lines = [line for line in last_lines(self._layout.supervisord_out, 3) if "For help, use" not in line]
        why = " ".join(lines) or f"see {self._layout.logs / 'supervisord.log'}"
        return f"supervisord {describe_end(returncode)}: {why}"

    def stop(self) -> None:
        """Have it stop everything in order."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def programs(self) -> list[psutil.Process]:
        """Give what it started and runs; once it is gone, what it left to us."""
        if self.returncode is not None:
            return self._children()
        with contextlib.suppress(psutil.NoSuchProcess):
            return [process for process in psutil.Process(self.pid).children() if lives(process)]
        return []

    def hurry(self) -> None:
        """Have every program that was not told so yet end its server now.

        A wrapper takes a second stop signal as "kill vLLM now". Whether it has been told before or
        not, two different signals are two: equal ones may become one on the way. gunicorn's master
        takes INT as a quick shutdown.
        """
        fresh = set(self.programs()) - self._hurried
        self._hurried |= fresh
        for signum in (signal.SIGINT, signal.SIGTERM):
            for process in fresh:
                _send(process, signum)

    def kill(self) -> None:
        """Kill it, so that it starts nothing again, and all that descends from it."""
        left = self.descendants()
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
        for process in left:
            _send(process, signal.SIGKILL)

    def descendants(self) -> list[psutil.Process]:
        """Give what lives of it, of all that descends from it, and of what it left to us."""
        found = []
        for child in self._children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child, *child.children(recursive=True)]
        return [process for process in found if lives(process)]

    def _children(self) -> list[psutil.Process]:
        """Give our living children, without those that a shell left to us when it became this program."""
        children = set(psutil.Process().children()) - self._not_ours
        return [process for process in children if lives(process)]


def _send(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)
