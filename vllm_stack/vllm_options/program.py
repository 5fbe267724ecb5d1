"""Asking a vLLM for its options: it imports torch for that, which takes many seconds."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

_HELP_BYTES = 4 << 20
_PIECE = 1 << 16
_GLANCE_SECONDS = 0.05
# argparse indents the names of an option by two, what it says about them by more.
_HELP_NAMES = re.compile(r"(?:^  |, )(--?[A-Za-z0-9][\w-]*)", re.ASCII)


def ask_program(argv: Sequence[str], patience: float) -> frozenset[str]:
    """Give the options that `argv serve --help=all` lists; none if it fails or takes longer than that."""
    environment = {**os.environ, "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    try:
        process = subprocess.Popen(
            [*argv, "serve", "--help=all"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    except (OSError, ValueError):
        return frozenset()
    with process:
        deadline = time.monotonic() + patience
        try:
            text = _read_to_end(process, deadline)
        finally:
            if process.poll() is None:
                # With all it started: a wrapper's child may be the one that hangs.
                os.killpg(process.pid, signal.SIGKILL)
    return parse_help(text) if process.returncode == 0 else frozenset()


def parse_help(text: str) -> frozenset[str]:
    """Give the option strings that the help of an argparse program lists."""
    lines = [line for line in text.splitlines() if line.startswith("  -")]
    return frozenset(name for line in lines for name in _HELP_NAMES.findall(line))


def _read_to_end(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Read what a process prints until it ends, the deadline passes or it has said too much.

    The end is its own: what it left running may hold the pipe open.
    """
    read = bytearray()
    with selectors.DefaultSelector() as selector:
        if process.stdout is not None:
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ)
        while len(read) < _HELP_BYTES and time.monotonic() < deadline:
            ended = process.poll() is not None
            ready = selector.select(0.0 if ended else _GLANCE_SECONDS)
            piece = b"".join(os.read(key.fd, _PIECE) for key, _ in ready)
            read += piece
            if ready and not piece:
                selector.unregister(ready[0][0].fileobj)
            elif not ready and ended:
                break
    return read.decode("utf-8", "replace")
