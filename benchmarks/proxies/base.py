"""What the benchmark needs to know of a proxy."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from benchmarks.extent import ROWS

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one proxy runs: its directory, the ports it may use, and the backends it sends to."""

    directory: Path
    port: int
    spare_port: int
    backends: tuple[int, ...]

    @property
    def backend_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.backends]

    def of_its_own(self, name: str, ports: Sequence[int]) -> Self:
        """Give a place beside this one, for another proxy before the same backends."""
        directory = self.directory / name
        directory.mkdir()
        return replace(self, directory=directory, port=ports[0], spare_port=ports[1])


def backend_socket(directory: Path, port: int) -> Path:
    """Say where the backend of a port listens beside it, in the directory of the whole run."""
    return directory / f"backend-{port}.sock"


class Proxy(ABC):
    """One proxy: how it is found, prepared and started."""

    name: str
    settings: str  # in words, for the report
    rows: tuple[str, ...] = ROWS  # in which it is measured

    @abstractmethod
    def missing(self) -> str | None:
        """Say what is not installed; None if nothing is missing."""

    @abstractmethod
    def version(self) -> str:
        """Give the version that will be measured."""

    def prepare(self, place: Place) -> None:  # noqa: B027 - most have nothing to prepare
        """Write what it needs; the backends do not run yet."""

    @abstractmethod
    def argv(self, place: Place) -> list[str | Path]:
        """Give the command that becomes, or stays the parent of, all its processes."""

    def env(self, place: Place) -> dict[str, str]:
        return dict(os.environ)


def find_program(name: str) -> str | None:
    """Find a program; Debian keeps servers where users' PATH may not lead."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def output_of(*argv: str | Path) -> str:
    """Give what a program prints, on whichever of its two outputs."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def package_version(python: str | Path, package: str) -> str:
    """Give the version of a package in some Python environment."""
    look = f"import importlib.metadata as m; print(m.version({package!r}))"
    return output_of(python, "-c", look).strip().splitlines()[-1]


def file_limit() -> int:
    """Give how many descriptors a process may have at most."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]
