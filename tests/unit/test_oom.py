"""The kernel's count of OOM kills: one kill counts once, and a file that is not there does no harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_stack.worker.oom import OomCounter


class Kernel:
    """Files as the kernel has them, in a directory of the test."""

    def __init__(self, root: Path) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.cgroups.mkdir()

    def host(self, kills: int) -> None:
        (self.proc / "vmstat").write_text(f"nr_free_pages 10\noom_kill {kills}\noom_kill_other 99\n")

    def group(self, path: str, kills: int | None) -> None:
        (self.proc / "self" / "cgroup").write_text(f"1:name=systemd:/\n0::{path}\n")
        if kills is not None:
            directory = self.cgroups / path.lstrip("/")
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "memory.events").write_text(f"low 0\noom 7\noom_kill {kills}\noom_group_kill 5\n")

    def read(self) -> OomCounter:
        return OomCounter.read(self.proc, self.cgroups)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_without_a_group_the_hosts_kills_count(kernel: Kernel) -> None:
    kernel.host(4)
    before = kernel.read()
    kernel.host(6)
    assert before.kills_until(kernel.read()) == 2


@pytest.mark.parametrize("path", ["/", "/system.slice/stack.service"])
def test_a_kill_in_our_group_counts_once(kernel: Kernel, path: str) -> None:
    kernel.host(4)
    kernel.group(path, 1)
    before = kernel.read()
    kernel.host(5)
    kernel.group(path, 2)
    assert before.kills_until(kernel.read()) == 1


def test_a_kill_in_somebody_elses_group_is_not_ours(kernel: Kernel) -> None:
    kernel.host(4)
    kernel.group("/ours", 1)
    before = kernel.read()
    kernel.host(5)
    assert before.kills_until(kernel.read()) == 0


def test_a_group_that_is_not_counted_leaves_the_hosts_count(kernel: Kernel) -> None:
    kernel.host(4)
    kernel.group("/user.slice", None)
    before = kernel.read()
    kernel.host(5)
    assert before.kills_until(kernel.read()) == 1


def test_a_count_that_appears_or_vanishes_between_is_not_compared_with_nothing(kernel: Kernel) -> None:
    kernel.host(4)
    before = kernel.read()
    kernel.host(5)
    kernel.group("/new", 3)
    after = kernel.read()
    assert before.kills_until(after) == 1
    assert after.kills_until(before) == 0


@pytest.mark.parametrize("text", ["", "oom_kill", "oom_kill many", "oom_kill 1 2", "\0\0"])
def test_damaged_files_count_nothing(kernel: Kernel, text: str) -> None:
    (kernel.proc / "vmstat").write_text(text)
    (kernel.proc / "self" / "cgroup").write_bytes(b"\xff\xfe")
    assert kernel.read() == OomCounter(None, None)
    assert kernel.read().kills_until(kernel.read()) == 0


def test_no_files_count_nothing(tmp_path: Path) -> None:
    assert OomCounter.read(tmp_path / "none", tmp_path / "none") == OomCounter(None, None)


def test_this_machine_can_be_read() -> None:
    now = OomCounter.read()
    assert now.kills_until(now) == 0
