"""What a server that hangs was doing: taken down before it is killed, because nothing tells afterwards."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

KEPT = 5  # cases of one worker
TIMEOUT = 15.0  # seconds for all of it: a worker that hangs serves nobody


def take_evidence(
    directory: Path, name: str, reason: str, processes: Sequence[psutil.Process], metrics: bytes
) -> Path:
    """Write down what the processes of worker `name` are doing; gives the new directory in `directory`.

    Python stacks come from py-spy, which may trace a process of the same user only where
    /proc/sys/kernel/yama/ptrace_scope is 0, or as root; what the kernel tells of the threads is
    there in any case. Older cases but the last `KEPT` go. Raises `OSError`.
    """
    case = directory / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    case.mkdir(mode=0o700, parents=True, exist_ok=True)
    (case / "reason.txt").write_text(f"{reason}\n", "utf-8")
    (case / "processes.txt").write_text("\n".join(_describe(processes)) + "\n", "utf-8")
    (case / "metrics.txt").write_bytes(metrics)
    _run_all(_commands(processes), case)
    for old in sorted(directory.glob(f"{name}-*"))[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return case


def _commands(processes: Sequence[psutil.Process]) -> Iterator[tuple[str, list[str]]]:
    """Name the programs that tell more, each with the file for its words."""
    beside = Path(sys.executable).with_name("py-spy")
    py_spy = str(beside) if beside.exists() else shutil.which("py-spy")
    if py_spy is not None:
        # Nonblocking: a process that is stopped, or stuck in the kernel, could not be paused.
        for process in processes:
            yield f"stack-{process.pid}.txt", [py_spy, "dump", "--nonblocking", "--pid", str(process.pid)]
    if nvidia_smi := shutil.which("nvidia-smi"):
        yield "nvidia-smi.txt", [nvidia_smi]


def _run_all(commands: Iterator[tuple[str, list[str]]], case: Path) -> None:
    """Run them side by side; what has not ended in time is killed, and its words so far stay."""
    running = []
    for file, command in commands:
        with contextlib.suppress(OSError), (case / file).open("wb") as words:
            running.append(
                subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=words, stderr=subprocess.STDOUT)
            )
    deadline = time.monotonic() + TIMEOUT
    for program in running:
        try:
            program.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()


def _describe(processes: Sequence[psutil.Process]) -> Iterator[str]:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            times, memory = process.cpu_times(), process.memory_info()
            yield (
                f"{process.pid} parent {process.ppid()} {process.status()} "
                f"cpu {times.user + times.system:.1f} s, resident {memory.rss >> 20} MiB: "
                f"{' '.join(process.cmdline())[:200].rstrip()}"
            )
            yield from _threads(process.pid)


def _threads(pid: int) -> Iterator[str]:
    """Say of every thread in which state it is, and in which function of the kernel it waits."""
    with contextlib.suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                name = (task / "comm").read_text().strip()
                state = (task / "stat").read_text().rpartition(")")[2].split()[0]
                yield f"    thread {task.name} {name}: {state} {(task / 'wchan').read_text()}"
