"""Which machine and which versions the figures belong to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path

import psutil

PACKAGES = ("gunicorn", "gevent", "httptools", "uvloop")


def describe_machine() -> dict[str, str]:
    """Give what a reader needs to judge the figures."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    return {
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores",
        "Memory": f"{_memory_gb():.0f} GB",
        "System": f"{_system()}, Linux {platform.release()}",
        "Python": f"{platform.python_version()} ({_python_build()}); {versions}",
    }


def _python_build() -> str:
    """Say how the interpreter was built: in a shared library it takes up to a fifth more CPU."""
    shared = "libpython" in Path("/proc/self/maps").read_text()
    return f"{platform.python_compiler()}, {'in a shared library' if shared else 'in one executable'}"


class Bystanders:
    """How much of the machine others took meanwhile: figures of a busy machine deserve less trust."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.monotonic(), _all_seconds(), _own_seconds()

    def in_words(self) -> str:
        """Say it, for the time since the beginning; what was started meanwhile has to have ended."""
        took = time.monotonic() - self._began
        others = _all_seconds() - self._all - (_own_seconds() - self._own)
        return f"{max(0.0, others) / took:.2f} cores on average"


def _all_seconds() -> float:
    # Packets are left out: the kernel works on ours at times that it counts as nobody's.
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.steal)


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _memory_gb() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()
