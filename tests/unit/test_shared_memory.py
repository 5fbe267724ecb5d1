"""What a killed server leaves in /dev/shm is removed; what merely looks like it stays."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from vllm_stack.leftovers.shared_memory import SHM, SharedMemory

# Maps a file and says so; then waits to be killed.
MAPPER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    memory = mmap.mmap(file.fileno(), 4096)
print(flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory(tmp_path: Path) -> SharedMemory:
    return SharedMemory(tmp_path / "worker-0.shm.json")


@pytest.fixture
def make() -> Iterator[object]:
    made: list[Path] = []

    def one(prefix: str = "psm_test") -> Path:
        path = SHM / f"{prefix}{uuid4().hex[:12]}"
        path.write_bytes(b"\0" * 4096)
        made.append(path)
        return path

    yield one
    for path in made:
        path.unlink(missing_ok=True)


@contextmanager
def mapping(path: Path) -> Iterator[int]:
    """Have another process map the file for as long as this lasts."""
    with subprocess.Popen(
        [sys.executable, "-c", MAPPER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def test_what_a_killed_process_had_mapped_is_removed(memory: SharedMemory, make) -> None:  # type: ignore[no-untyped-def]
    memory.begin()
    path = make()
    with mapping(path) as pid:
        memory.note([pid])
        assert memory.stale() == [], "it is in use"
    said: list[str] = []
    assert memory.remove_stale(said.append) == [path]
    assert not path.exists()
    assert str(path) in said[0]
    assert not memory.record.exists()


def test_what_another_process_still_maps_stays(memory: SharedMemory, make) -> None:  # type: ignore[no-untyped-def]
    memory.begin()
    path = make()
    with mapping(path) as neighbour:
        with mapping(path) as pid:
            memory.note([pid, neighbour])
        assert memory.remove_stale(lambda text: None) == []
        assert path.exists()


def test_what_was_there_before_the_life_stays_whatever_its_name(memory: SharedMemory, make) -> None:  # type: ignore[no-untyped-def]
    """A model that somebody put into /dev/shm, say."""
    model, semaphore = make("model-"), make("sem.mp-")
    memory.begin()
    with mapping(model) as pid:
        memory.note([pid])
    assert memory.remove_stale(lambda text: None) == []
    assert model.exists()
    assert semaphore.exists()


def test_a_file_that_none_of_the_processes_mapped_stays(memory: SharedMemory, make) -> None:  # type: ignore[no-untyped-def]
    memory.begin()
    path = make("psm_")
    memory.note([])
    assert memory.remove_stale(lambda text: None) == []
    assert path.exists()


def test_a_semaphore_is_known_although_it_was_renamed(memory: SharedMemory) -> None:
    """glibc makes it under another name, maps it, and gives it its own afterwards.

    Taken for unused, the semaphores of other servers would be removed while they start.
    """
    memory.begin()
    lock = multiprocessing.get_context("spawn").Lock()
    semaphore = "sem." + lock._semlock.name.removeprefix("/")  # type: ignore[attr-defined]
    memory.note([os.getpid()])
    assert semaphore in memory.record.read_text()
    assert memory.remove_stale(lambda text: None) == []
    assert (SHM / semaphore).exists()
    del lock


@pytest.mark.parametrize("text", ["", "{", "[]", '{"boot": 1}', '{"names": ["x"], "before": []}'])
def test_without_a_record_of_this_boot_nothing_is_touched(
    memory: SharedMemory,
    make,  # type: ignore[no-untyped-def]
    text: str,
) -> None:
    path = make("sem.mp-test")
    memory.record.write_text(text)
    assert memory.remove_stale(lambda text: None) == []
    assert path.exists()


def test_a_name_that_leads_out_of_the_directory_is_no_name(memory: SharedMemory, tmp_path: Path) -> None:
    memory.begin()
    victim = tmp_path / "victim"
    victim.write_text("")
    record = memory.record.read_text().replace('"names": []', f'"names": ["../..{victim}"]')
    memory.record.write_text(record)
    assert memory.remove_stale(lambda text: None) == []
    assert victim.exists()
