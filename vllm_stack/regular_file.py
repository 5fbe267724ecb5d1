"""Files that a user names are read without waiting for them and without filling the memory."""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from vllm_stack.sizes import MIB

# The most (bytes) of a file with settings, such as an index of shards: the largest known have a few MiB.
MOST_SETTINGS = 64 * MIB
# And of one with keys, or a certificate with its chain.
MOST_KEYS = MIB
# What a shell hands over as a name for an open descriptor: `<(...)`, `/dev/stdin`.
_DESCRIPTOR = re.compile(r"/dev/stdin|/dev/fd/\d+|/proc/(self|\d+)/fd/\d+", re.ASCII)


def read_regular(path: Path, most: int) -> bytes:
    """Give what a file holds; raises `OSError` as `open_regular`, and for more than `most` bytes."""
    with open_regular(path) as stream:
        return read_at_most(stream, path, most)


def open_regular(path: Path, *, or_pipe: bool = False) -> BinaryIO:
    """Open a file for reading; raises `OSError` for a FIFO or a device, whose end nobody knows.

    With `or_pipe` a pipe is taken that was opened for us by the shell.
    """
    # Without O_NONBLOCK the opening of a FIFO waits for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        mode = os.fstat(descriptor).st_mode
        if or_pipe and stat.S_ISFIFO(mode) and _DESCRIPTOR.fullmatch(str(path)):
            os.set_blocking(descriptor, True)
        elif stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        elif not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_at_most(stream: BinaryIO, path: Path, most: int) -> bytes:
    """Read a stream to its end; raises `OSError` if that is further than `most` bytes."""
    size = os.fstat(stream.fileno()).st_size
    content = b"" if size > most else stream.read(most + 1)
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"Larger than {most // MIB} MiB", str(path))
    return content
