"""The processes behind the fake API server: EngineCore and its Worker.

    fake_engine.py engine OPTIONS_JSON    started by fake_vllm.py
    fake_engine.py worker OPTIONS_JSON    started by the engine

Both rename themselves with setproctitle, as vLLM does. That overwrites the memory behind
/proc/PID/environ, so whoever looks for leftovers by an environment variable finds neither
of them. A stand-in that skipped the renaming would let such a sweep pass its tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from setproctitle import setproctitle

if TYPE_CHECKING:
    from multiprocessing.shared_memory import SharedMemory


class TermFlag:
    """Remember that SIGTERM or SIGINT came; the engine looks only when it chooses to."""

    def __init__(self) -> None:
        self.raised = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.raised = True


def run_engine(options: dict[str, Any]) -> int:
    import subprocess  # here: the worker does without, and tests start many

    setproctitle(f"{options['prefix']}::EngineCore")
    term = TermFlag()
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, signal.SIG_IGN if options["ignores_term"] else term)
    if options["setsid"]:
        os.setsid()

    files = make_files(options["tracker"]) if options["makes_files"] else None

    # The engine tells that it is ready when its worker is.
    ready_read, ready_write = os.pipe()
    # The engine alone holds the writing end: when it is gone, by whatever death, the worker
    # reads EOF. Nothing of the kind points from the engine to the API server (vllm#55510).
    death_read, death_write = os.pipe()
    shared = {**options, "death": death_read, "ready": ready_write}
    worker = subprocess.Popen(
        [sys.executable, __file__, "worker", json.dumps(shared)],
        stdin=subprocess.DEVNULL,
        pass_fds=[death_read, ready_write, options["tracker"]],
    )
    os.close(death_read)
    os.close(ready_write)

    # While the model loads, SIGTERM does nothing but set the flag (v1/engine/core.py:1428).
    loaded_at = time.monotonic() + options["load_seconds"]
    os.read(ready_read, 1)
    while time.monotonic() < loaded_at:
        if worker.poll() is not None:
            return 1
        time.sleep(0.02)

    # ZMQ would not notice a dead API server either: the engine stays, and holds the memory.
    with contextlib.suppress(OSError):
        os.write(options["control"], json.dumps({"worker": worker.pid}).encode())

    while not term.raised:
        if worker.poll() is not None:
            return 1
        pause(0.02, options["computes"])
    os.close(death_write)
    worker.wait()
    if files is not None:
        files.unlink()
    return 0


def make_files(tracker: int) -> SharedMemory:
    """Make what a killed vLLM leaves: shared memory, which the API server's tracker knows, and a file."""
    import tempfile
    from multiprocessing import resource_tracker
    from multiprocessing.shared_memory import SharedMemory

    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    tempfile.mkstemp(prefix="vllm_dist_")
    return SharedMemory(create=True, size=65536)


def pause(seconds: float, computing: bool) -> None:
    if not computing:
        return time.sleep(seconds)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def run_worker(options: dict[str, Any]) -> int:
    setproctitle(f"{options['prefix']}::Worker_TP0")
    # multiproc_executor.py:871: SIGTERM ends a worker at once, in the middle of a drain too.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda signum, frame: os._exit(0))
    os.write(options["ready"], b".")
    os.close(options["ready"])
    os.read(options["death"], 1)
    return 0


if __name__ == "__main__":
    role, text = sys.argv[1:]
    sys.exit({"engine": run_engine, "worker": run_worker}[role](json.loads(text)))
