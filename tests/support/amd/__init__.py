"""Boxes of AMD GPUs for tests on machines without any: a stand-in for ROCm's Python package amdsmi.

The real one loads the driver's library when it is imported, and cannot be had without. The stand-in
(`site/amdsmi`) has the names, signatures and answers of the calls of amdsmi 7.0.2 that are made here. A
process started with `environment` sees the box, and no NVIDIA driver:

    box = StandIn(tmp_path)
    box.show(Gpu(hip=1), Gpu(hip=0, used=70 * GIB, processes=((4711, 70 * GIB),)))
    subprocess.run(..., env={**os.environ, **box.environment})
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.support.nvml import LIBRARY

GIB = 1024**3
SITE = Path(__file__).parent / "site"
# The variable that names the file with the box, for the stand-in.
VARIABLE = "AMDSMI_STAND_IN"
MASKS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Gpu:
    """A GPU, in the order of amdsmi's handles; sizes in bytes, `used` by programs.

    `hip` is the number of its node less that of the first, `xgmi` are the places of the GPUs it is joined
    to, `xgmi_far` of those it reaches through another one.
    """

    hip: int | None = None
    serial: str = "0x00000000CAFE0000"
    name: str = "AMD Instinct MI300X"
    total: int = 192 * GIB
    used: int = 0
    bdf: str = "ffff:00:00.0"
    numa: int = 0
    ecc: int = 0
    xgmi: tuple[int, ...] = ()
    xgmi_far: tuple[int, ...] = ()
    processes: tuple[tuple[int, int], ...] = ()
    # The name of a call -> the number that it fails with, or "missing".
    errors: Mapping[str, int | str] = field(default_factory=dict)


def gpus(count: int) -> list[Gpu]:
    """All alike, in the order of HIP, joined by XGMI."""
    return [
        Gpu(
            hip=place,
            serial=f"0x{place + 1:X}BAD0000CAFE0000",
            xgmi=tuple(other for other in range(count) if other != place),
        )
        for place in range(count)
    ]


@dataclass(frozen=True)
class StandIn:
    """A box of AMD GPUs; without a `show` the driver's library is missing."""

    home: Path

    def show(self, *shown: Gpu, errors: Mapping[str, int | str] | None = None) -> None:
        """Have these GPUs; `errors` are those of calls for the whole box."""
        text = json.dumps({"gpus": [asdict(gpu) for gpu in shown], "errors": dict(errors or {})})
        (self.home / "amd.json.new").write_text(text)
        (self.home / "amd.json.new").replace(self.home / "amd.json")

    @property
    def environment(self) -> dict[str, str]:
        """NVIDIA's library is an empty file, which hides the real one, if there is one."""
        none = self.home / "no-nvidia"
        none.mkdir(exist_ok=True)
        (none / LIBRARY).touch()
        paths = [str(SITE), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {
            "PYTHONPATH": os.pathsep.join(paths),
            "LD_LIBRARY_PATH": str(none),
            VARIABLE: str(self.home / "amd.json"),
        }
