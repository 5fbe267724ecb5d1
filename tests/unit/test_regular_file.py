"""Only regular files are read, and no more of them than is sensible."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vllm_stack.regular_file import open_regular, read_at_most, read_regular
from vllm_stack.sizes import GIB, MIB


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    assert read_regular(path, MIB) == b"x" * MIB


def test_a_file_that_is_too_large_is_not_even_begun(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.truncate(3 * GIB)
    with pytest.raises(OSError, match="Larger than 64 MiB") as caught:
        read_regular(path, 64 * MIB)
    assert caught.value.filename == str(path)


def test_a_file_of_the_kernel_has_a_size_that_nobody_tells() -> None:
    assert read_regular(Path("/proc/self/status"), MIB)
    with pytest.raises(OSError, match="Larger"):
        read_regular(Path("/proc/self/status"), 10)


@pytest.mark.timeout(10)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path, tmp_path / "none"):
        with pytest.raises(OSError, match=str(path)):
            read_regular(path, MIB)


@pytest.mark.timeout(10)
def test_a_pipe_is_taken_only_by_the_name_of_its_descriptor(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"secret")
    os.close(writing)
    path = Path(f"/dev/fd/{reading}")
    try:
        with pytest.raises(OSError, match="Not a regular file"):
            open_regular(path)
        with open_regular(path, or_pipe=True) as stream:
            assert read_at_most(stream, path, 6) == b"secret"
    finally:
        os.close(reading)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="Not a regular file") as caught:
        open_regular(tmp_path / "fifo", or_pipe=True)
    assert caught.value.errno == errno.EINVAL


def test_a_pipe_without_an_end_is_given_up() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"0123456789")
    path = Path(f"/dev/fd/{reading}")
    try:
        with open_regular(path, or_pipe=True) as stream, pytest.raises(OSError, match="Larger"):
            read_at_most(stream, path, 9)
    finally:
        os.close(reading)
        os.close(writing)
