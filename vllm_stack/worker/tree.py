"""One server and everything that descends from it: started in a clean box, reaped to the last."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from vllm_stack.leftovers.processes import JANITOR_GRACE, is_janitor
from vllm_stack.program import die_with_parent, parent_is_gone, reap_children, unblock_in_child

# How long what is left after the server's own end may take to follow a TERM.
STRAGGLER_GRACE = 3.0


class Tree:
    """The process tree of one server. The owner must be a subreaper (`program.adopt_orphans`)."""

    def __init__(
        self, argv: tuple[str, ...], env: Mapping[str, str], cwd: Path, cores: tuple[int, ...] = ()
    ) -> None:
        """Start the server in our own process group, which supervisord can kill as a last resort.

        All that descends from it runs on `cores`, if any are named and any of them is there.
        Raises `OSError` when the program cannot be executed.
        """
        parent = os.getpid()

        def prepare() -> None:
            die_with_parent(signal.SIGKILL)
            if parent_is_gone(parent):
                os._exit(1)
            unblock_in_child()
            if cores:
                with contextlib.suppress(OSError):  # none of them is there any more: slower, not worse
                    os.sched_setaffinity(0, cores)

        self._server = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, preexec_fn=prepare)
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        return self._server.pid

    def signal(self, signum: int) -> None:
        """Signal the server alone: its tensor-parallel workers would die of a TERM while it drains."""
        if self._server.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def reap(self) -> int | None:
        """Collect whatever has ended; give the server's return code once it is among it."""
        return reap_children(self._server)

    def end_stragglers(self, say: Callable[[str], object], timeout: float = 12.0) -> bool:
        """End all that outlived the server: TERM, then KILL, until no child is left.

        Orphans come to us because we are a subreaper, so this ends for any tree, also for
        processes that left the group or the session. False if the kernel holds one past `timeout`.
        """
        begun = time.monotonic()
        termed: set[int] = set()
        while self._has_children():
            waited = time.monotonic() - begun
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.pid not in termed:
                        termed.add(process.pid)
                        process.terminate()
                    elif waited > STRAGGLER_GRACE + (JANITOR_GRACE if is_janitor(process) else 0):
                        process.kill()
            self.reap()
            if waited > timeout:
                say(f"processes {sorted(termed)} do not die after SIGKILL; the kernel holds them")
                return False
            time.sleep(0.1)
        return True

    @staticmethod
    def _has_children() -> bool:
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True
