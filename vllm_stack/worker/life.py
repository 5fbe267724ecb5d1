"""One life of a worker, from an empty box to an empty box.

Theory of operation. supervisord starts the wrapper at once after every failure; the wrapper waits
out the delay at its own start. So `supervisorctl status` says STARTING while it waits, a stop is
immediate in every phase, and a deliberate restart waits for nothing:

    ask supervisord -> sweep leftovers -> wait out the last failure -> start -> watch -> reap

A requested end removes the failure record and exits with 0. Any other end is a failure, exit code
0 included (vllm#48966: vLLM can exit with 0 when its engine died): it is recorded, and the wrapper
exits non-zero. A wrapper that was killed itself leaves its note of being alive: the next start
takes that for the failure it is. A delayed start waits at least as long as supervisord's startsecs
(`Spec.settle`): then supervisord books the start as good and resets its count of failed ones, so
that a worker is never given up (FATAL).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from vllm_stack.address import Address, UnixAddress
from vllm_stack.leftovers import MARKER, sweep
from vllm_stack.program import STOP_SIGNALS, Order, ask_supervisord, take_signal
from vllm_stack.worker.failure import describe_end, last_failure, record_failure
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.tree import Tree

# What must not leak from the operator's shell into a server: development mode opens control routes
# without a key (vllm/envs.py), and supervisord's own variables are nobody else's business.
_NOT_INHERITED = ("VLLM_SERVER_DEV_MODE", "VLLM_API_KEY", "VLLM_STACK_", "SUPERVISOR_")
EXIT_ENGINE_DIED = 70  # sysexits.h EX_SOFTWARE: stands in for an exit code 0 nobody asked for
# Seconds from the notice to the TERM: the proxy looks for notices every 0.2 s.
NOTICE = 0.5
# Seconds between two TERMs to a server that is still starting.
REPEAT_TERM = 2.0
EXIT_CANNOT_START = 127  # as a shell says it


class Life:
    """One run of the wrapper."""

    def __init__(self, spec: Spec, environ: dict[str, str]) -> None:
        self._spec = spec
        self._environ = environ
        self._born = time.monotonic()

    def run(self) -> int:
        """Live this life; gives the exit code that tells supervisord how it ended."""
        if ask_supervisord(self._environ) is not Order.RUN:
            self._say("told to stop before the start: nothing was started")
            self._forget_failure()
            return 0
        identity = self._spec.identity
        sweep(identity, self._say)
        with self._noting("the working directory could not be emptied"):
            self._empty_box()
        self._note_a_killed_wrapper()
        if self._wait_out_last_failure() or self._stop_is_pending():
            self._forget_failure()
            return 0
        with self._noting("the notice of the last stop could not be removed"):
            self._spec.stopping.unlink(missing_ok=True)
        with self._noting("this life could not be recorded"):
            identity.record_life()
        self._remove_socket()
        try:
            tree = Tree(self._spec.argv, self._server_environment(), self._spec.box)
        except OSError as error:
            self._say(f"vLLM cannot be started: {error}")
            self._record_failure(EXIT_CANNOT_START, 0.0)
            self._forget_life()
            return EXIT_CANNOT_START
        self._say(f"started vLLM on {self._spec.address}, process {tree.pid}")
        asked = self._watch(tree)
        return self._end(tree, asked)

    def _empty_box(self) -> None:
        """Remove what earlier lives left in the working directory: the sockets of dead engines."""
        for path in self._spec.box.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _remove_socket(self) -> None:
        """vLLM leaves its unix socket behind, however it ends, and cannot bind to a path that exists."""
        address = self._spec.address
        if isinstance(address, UnixAddress):
            with self._noting("the socket of the server that ended could not be removed"):
                Path(address.path).unlink(missing_ok=True)

    def _note_a_killed_wrapper(self) -> None:
        """Record the failure that a wrapper could not record itself: its server died with it.

        A wrapper that was told to stop is killed too, by supervisord, when it takes too long.
        """
        began = self._spec.identity.cut_short()
        if began is not None and not self._spec.stopping.exists():
            self._record_failure(-signal.SIGKILL, time.time() - began)
            self._forget_life()

    def _wait_out_last_failure(self) -> bool:
        """Wait until the delay after the last failure is over; True when a stop ended the wait."""
        failure = last_failure(self._spec.failure)
        age = failure.age() if failure else None
        if failure is None or age is None or not 0 <= age < self._spec.restart_delay:
            return False
        pause = max(self._spec.restart_delay - age, self._spec.settle - self._age())
        self._say(f"vLLM {failure.how} {age:.0f} s ago; starting it again in {pause:.0f} s")
        deadline = time.monotonic() + pause
        while (left := deadline - time.monotonic()) > 0:
            if take_signal(left) in STOP_SIGNALS:
                self._say("told to stop while waiting")
                return True
        return False

    def _stop_is_pending(self) -> bool:
        while (signum := take_signal(0)) is not None:
            if signum in STOP_SIGNALS:
                return True
        return False

    def _watch(self, tree: Tree) -> bool:
        """Stay until the server has ended; True if it was told to.

        The first stop signal goes to the server as TERM, which drains it; a second one, or the end
        of the grace, kills it.
        """
        deadline: float | None = None
        starting = False
        while tree.reap() is None:
            signum = take_signal(self._patience(deadline, starting))
            if signum in STOP_SIGNALS and deadline is None:
                self._say(f"told to stop: vLLM has {self._spec.stop_grace:.0f} s")
                deadline = time.monotonic() + self._spec.stop_grace
                starting = not _listens(self._spec.address)
                tree.signal(signal.SIGKILL if self._tell_proxy() else signal.SIGTERM)
            elif signum in STOP_SIGNALS:
                self._say("told to stop again: killing vLLM")
                tree.signal(signal.SIGKILL)
            elif signum == signal.SIGHUP:
                tree.signal(signal.SIGHUP)
            elif deadline is not None and time.monotonic() >= deadline:
                self._say("vLLM did not stop in time: killing it")
                tree.signal(signal.SIGKILL)
                deadline += 5
            elif starting and signum is None:
                tree.signal(signal.SIGTERM)
        return deadline is not None

    @staticmethod
    def _patience(deadline: float | None, starting: bool) -> float:
        """Give the seconds to wait for the next signal.

        vLLM can lose a TERM while it starts its engine and go on to serve: `zmq_socket_ctx`
        (vllm/utils/network_utils.py) swallows the KeyboardInterrupt it is turned into. So it is
        repeated, but only to a server that was not serving: a drain must not be hurried.
        """
        left = 60.0 if deadline is None else deadline - time.monotonic()
        return min(left, REPEAT_TERM) if starting else left

    def _tell_proxy(self) -> bool:
        """Have the proxy send elsewhere before vLLM drains; True if a second stop signal came.

        While it drains, vLLM still takes requests and answers them 200 with `finish_reason:
        "abort"` (vllm#57082). When supervisord goes down, the proxy has stopped already.
        """
        with self._noting("the proxy could not be told"):
            self._spec.stopping.touch(mode=0o600)
        if ask_supervisord(self._environ) is Order.SHUTDOWN:
            return False
        deadline = time.monotonic() + NOTICE
        while (left := deadline - time.monotonic()) > 0:
            if take_signal(left) in STOP_SIGNALS:
                return True
        return False

    def _end(self, tree: Tree, asked: bool) -> int:
        seconds = time.monotonic() - tree.started
        self._remove_socket()
        returncode = tree.reap()
        assert returncode is not None  # noqa: S101 - _watch returns only then
        if not asked:
            # Recorded before the reaping: whatever happens to us now, the next start waits.
            self._record_failure(returncode, seconds)
        if tree.end_stragglers(self._say):
            self._forget_life()
        if asked or self._stop_is_pending():
            self._forget_failure()
            self._say("stopped")
            return 0
        return returncode or EXIT_ENGINE_DIED if returncode >= 0 else 128 - returncode

    def _server_environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in self._environ.items() if not k.startswith(_NOT_INHERITED)}
        secrets = {name: path.read_text("utf-8").strip() for name, path in self._spec.secret_env.items()}
        return inherited | self._spec.env | secrets | {MARKER: self._spec.title, "PWD": str(self._spec.box)}

    def _record_failure(self, returncode: int, seconds: float) -> None:
        self._say(f"vLLM {describe_end(returncode)} after {seconds:.0f} s, and nobody had asked it to")
        with self._noting("the failure could not be recorded, so the next start will not wait"):
            record_failure(self._spec.failure, returncode, seconds)

    def _forget_failure(self) -> None:
        with self._noting("the last failure could not be forgotten"):
            self._spec.failure.unlink(missing_ok=True)

    def _forget_life(self) -> None:
        with self._noting("the record of this life could not be removed"):
            self._spec.identity.forget_life()

    @contextlib.contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """Say what a full or broken disk prevented, and go on: the tree matters more than the records."""
        try:
            yield
        except OSError as error:
            self._say(f"{what}: {error}")

    def _age(self) -> float:
        return time.monotonic() - self._born

    def _say(self, text: str) -> None:
        """Write one line to the worker's log, which is our standard output."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            os.write(sys.stdout.fileno(), f"{stamp} vllm-stack {self._spec.name}: {text}\n".encode())
        except OSError:
            # supervisord was killed and its end of the pipe is gone: the work goes on unheard.
            return


def _listens(address: Address) -> bool:
    """Tell whether the server serves: vLLM binds its address early but listens only when it is ready."""
    with socket.socket(address.family) as probe:
        probe.settimeout(1)
        return probe.connect_ex(address.sockaddr) == 0
