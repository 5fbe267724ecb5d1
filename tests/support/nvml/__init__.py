"""Boxes of GPUs for tests on machines without any: the real nvidia-ml-py on a libnvidia-ml of ours.

A `StandIn` is a directory with the library (`nvml_stub.c`) and a file that says which GPUs there
are. A process started with its `environment` sees that box, and every change as soon as it is shown:

    box = StandIn(library, tmp_path)          # `library` as `build` gives it
    box.show(Gpu("GPU-a"), Gpu("GPU-b", used=70 * GIB, processes=((4711, 70 * GIB),)))
    subprocess.run(..., env={**os.environ, **box.environment})

pynvml keeps the library it loaded for the life of a process: never ask it in the tests' own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1024**3
SOURCE = Path(__file__).parent / "nvml_stub.c"
LIBRARY = "libnvidia-ml.so.1"
# The name of a function of NVML -> how it fails, as ERRORS in nvml_stub.c names it; "*" is every one.
Errors = Mapping[str, str]
# A pid and its bytes; None where the driver does not tell.
Process = tuple[int, int | None]


@dataclass(frozen=True)
class Device:
    """A MIG device, or what a GPU has in common with one; sizes in bytes, `used` by programs.

    `busy` is how many percent of the time it computes; None: it does not tell.
    """

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    total: int = 80 * GIB
    reserved: int = GIB // 2
    used: int = 0
    processes: tuple[Process, ...] = ()
    graphics: tuple[Process, ...] = ()
    busy: int | None = None
    errors: Errors = field(default_factory=dict)

    def lines(self) -> list[str]:
        return [
            f"name {self.name}",
            f"total {self.total}",
            f"reserved {self.reserved}",
            f"used {self.used}",
            *_known("busy {}", self.busy),
            *(f"process {pid} {_size(size)}" for pid, size in self.processes),
            *(f"graphics {pid} {_size(size)}" for pid, size in self.graphics),
            *_error_lines(self.errors),
        ]


@dataclass(frozen=True)
class Gpu(Device):
    """A GPU; `nvlinks` names, once for each link, the place of the GPU it goes to.

    The numbers are those of nvml.h: `compute_mode`, `pcie` (the place of another GPU -> its
    nvmlGpuTopologyLevel_t), `clocks` (why they are slow) and `recovery` (None: not supported).
    `cores` are the first and the last of those next to it, `ecc` errors not corrected, `remapping`
    "pending" or "failed", `remapped` rows.
    """

    nvlinks: tuple[int, ...] = ()
    migs: tuple[Device, ...] = ()
    mig_mode: bool = False
    capability: tuple[int, int] = (9, 0)
    compute_mode: int = 0
    numa: int | None = 0
    cores: tuple[int, int] | None = None
    pcie: Mapping[int, int] = field(default_factory=dict)
    ecc: int = 0
    remapped: int = 0
    remapping: str | None = None
    retiring: bool = False
    clocks: int = 0
    temperature: int = 0
    recovery: int | None = None

    def lines(self) -> list[str]:
        return [
            f"gpu {self.uuid}",
            *super().lines(),
            "capability {} {}".format(*self.capability),
            f"compute-mode {self.compute_mode}",
            *_known("numa {}", self.numa),
            *([] if self.cores is None else ["cores {}-{}".format(*self.cores)]),
            *(f"pcie {index} {level}" for index, level in self.pcie.items()),
            f"ecc {self.ecc}",
            f"remapped {self.remapped}",
            *_known("remapping {}", self.remapping),
            f"retiring {self.retiring:d}",
            f"clocks {self.clocks:x}",
            f"temperature {self.temperature}",
            *_known("recovery {}", self.recovery),
            f"mig-mode {self.mig_mode:d}",
            *(f"nvlink {index}" for index in self.nvlinks),
            *(line for mig in self.migs for line in (f"mig {mig.uuid}", *mig.lines())),
        ]


def gpus(count: int) -> tuple[Gpu, ...]:
    """Make a box of `count` equal GPUs with nothing on them."""
    return tuple(Gpu(f"GPU-{index}{index}{index}{index}aaaa-0000") for index in range(count))


class StandIn:
    """One box, as the processes see it that have its `environment`."""

    def __init__(self, library: Path, home: Path) -> None:
        self._library = library
        self._state = home / "gpus"
        self.show()

    @property
    def environment(self) -> dict[str, str]:
        paths = (str(self._library.parent), os.environ.get("LD_LIBRARY_PATH"))
        return {
            "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
            "NVML_STAND_IN": str(self._state),
        }

    def show(self, *gpus: Gpu, errors: Errors | None = None, cuda: int = 12080) -> None:
        """Have the box be this from now on; `errors` are those of the driver, whatever the GPU.

        `nvmlInit` stands for all its spellings; `cuda` is 12080 for 12.8.
        """
        whole = [f"cuda {cuda}", *_error_lines(errors or {})]
        lines = [*whole, *(line for gpu in gpus for line in gpu.lines())]
        fresh = self._state.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in lines))
        fresh.replace(self._state)


def build(directory: Path) -> Path:
    """Compile the stand-in into `directory` and give its path; AssertionError without a compiler."""
    compiler = shutil.which("cc")
    assert compiler, "these tests need a C compiler: no `cc` here (Debian: apt-get install gcc libc6-dev)"
    library = directory / LIBRARY
    options = ["-std=gnu11", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}"]
    done = subprocess.run(
        [compiler, *options, "-o", str(library), str(SOURCE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"the stand-in for NVML does not compile:\n{done.stderr}"
    return library


def _size(size: int | None) -> str:
    return "N/A" if size is None else str(size)


def _known(line: str, fact: object) -> list[str]:
    return [] if fact is None else [line.format(fact)]


def _error_lines(errors: Errors) -> list[str]:
    return [f"error {function} {error}" for function, error in errors.items()]
