"""The benchmark still works: our proxy alone, for a few seconds, without the programs of others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.extent import Extent
from benchmarks.proxies import KNOWN
from benchmarks.run import Run
from tests.support.polling import until
from tests.support.processes import is_alive

REPOSITORY = Path(__file__).parents[2]


def test_streams_and_memory_are_measured_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer through the rendered proxy is right, and costs something."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Stacks that other tests share may be running.
    others = psutil.Process().children(recursive=True)
    extent = Extent(rounds=1, stream_seconds=0.5, streams=(8,), idle_connections=50, held_streams=20)
    record = Run([KNOWN["ours"]], ["streams", "memory"], extent).execute()
    assert record.faults == []
    assert record.skipped == {}
    (ours,) = record.series("streams-8", "ours", "cpu_us").values()
    assert 1 < ours < 10_000
    assert record.series("streams-8", "direct", "per_second")
    assert record.series("memory", "ours", "idle_kb")
    assert record.series("memory", "ours", "stream_kb")
    assert set(psutil.Process().children(recursive=True)) <= set(others)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_ends_everything(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a measurement: exit code 130, no process, no file."""
    argv = [sys.executable, "-m", "benchmarks", "--quick", "--only", "ours", "--rows", "streams"]
    process = subprocess.Popen(
        argv,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        bench = psutil.Process(process.pid)
        # Two backends, gunicorn's master and worker, and the clients.
        until(lambda: len(bench.children(recursive=True)) >= 5, 30, "a measurement is under way")
        started = [(child.pid, child.create_time()) for child in bench.children(recursive=True)]
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Interrupted" in words
    assert not [pid for pid, created in started if is_alive(pid, created)]
    assert list(tmp_path.iterdir()) == []
