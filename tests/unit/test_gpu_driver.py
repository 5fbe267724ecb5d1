"""The driver is asked by another program: whatever becomes of that one, there is an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vllm_stack.errors import DriverTrouble
from vllm_stack.gpus.box import GpuBox
from vllm_stack.gpus.driver import ask_driver, read_box


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "trouble"),
    [
        ("exit 1", "the program that asks the NVIDIA driver ended with exit code 1"),
        (
            "echo one >&2; echo 'ImportError: two' >&2; exit 3",
            "the program that asks the NVIDIA driver ended with exit code 3: ImportError: two",
        ),
        ("kill -BUS $$", "the program that asks the NVIDIA driver was killed by SIGBUS"),
        ("echo NVRM: hello", "the program that asks the NVIDIA driver said b'NVRM: hello\\n'"),
        ("echo '{\"gpus\": 3}'", "the program that asks the NVIDIA driver said b'{\"gpus\": 3}\\n'"),
        ("exec sleep 60", "the NVIDIA driver has not answered for 0.5 s"),
    ],
)
def test_a_program_that_breaks_is_the_trouble_of_a_box_without_gpus(
    text: str, trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", text))
    assert read_box(timeout=0.5 if "sleep" in text else 60) == GpuBox((), trouble)


def test_a_program_that_cannot_be_started_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    with pytest.raises(DriverTrouble, match=r"the NVIDIA driver cannot be asked: .*/nonexistent"):
        ask_driver("any.module", (), 60)


def test_the_program_is_run_with_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", program(tmp_path / "python", 'echo "$@"'))
    assert ask_driver("any.module", ("2", "GPU-a"), 60) == b"-P -m any.module 2 GPU-a\n"


def test_who_asks_loads_no_driver_library() -> None:
    loads = (
        "import sys, vllm_stack.gpus.driver; sys.exit(bool({'pynvml', 'msgspec', 'psutil'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", loads], timeout=60, check=False).returncode == 0
