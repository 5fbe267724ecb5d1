"""The wheel is the whole program: installed elsewhere, it renders what the checkout renders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.ports import free_ports

REPOSITORY = Path(__file__).parents[2]


# What a wheel is made from.
SOURCES = ("vllm_stack", "templates", "pyproject.toml", "README.md", "LICENSE")


def make_wheel(place: Path, **env: str) -> Path:
    """Make a wheel from a copy of the checkout, as `python -m build` does in the environment of the tests."""
    copy = place / "copy"
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            # Without the times: a wheel must not depend on when its sources were written.
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, copy / name, ignore=ignored, copy_function=shutil.copy)
        else:
            shutil.copy(source, copy / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), str(copy)],
        check=True,
        capture_output=True,
        timeout=120,
        env={**os.environ, **env},
    )
    return next(place.glob("vllm_stack-*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel and what it asks for."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, timeout=500)
    return environment


def native_files(wheel: Path) -> list[str]:
    return sorted(name for name in zipfile.ZipFile(wheel).namelist() if "/native/" in name)


def test_a_wheel_has_the_part_in_c_and_not_its_source(wheel: Path) -> None:
    assert native_files(wheel) == ["vllm_stack/native/__init__.py", "vllm_stack/native/_pump.abi3.so"]
    assert "-cp311-abi3-linux_" in wheel.name


def test_a_wheel_has_the_page_of_the_dashboard(wheel: Path) -> None:
    there = set(zipfile.ZipFile(wheel).namelist())
    page = REPOSITORY / "vllm_stack/proxy/dashboard/page"
    assert {f"vllm_stack/proxy/dashboard/page/{file.name}" for file in page.iterdir()} <= there


def test_the_same_source_gives_the_same_wheel_wherever_it_lies(wheel: Path, tmp_path: Path) -> None:
    assert make_wheel(tmp_path / "elsewhere").read_bytes() == wheel.read_bytes()


def test_without_a_compiler_a_wheel_goes_without_the_part_in_c(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "wheel", PATH=str(tmp_path))
    assert native_files(wheel) == ["vllm_stack/native/__init__.py"]
    assert wheel.name.endswith("-py3-none-any.whl")


@pytest.mark.timeout(600)
def test_an_installed_wheel_relays_in_c(installed: Path, tmp_path: Path) -> None:
    look = "from vllm_stack.native import PUMP; print(PUMP)"
    done = subprocess.run(
        [installed / "bin" / "python", "-c", look], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "<class 'vllm_stack.native._pump.Pump'>", done.stderr


@pytest.mark.timeout(600)
def test_a_wheel_installed_in_an_empty_environment_renders_the_same_files(
    installed: Path, tmp_path: Path
) -> None:
    python = installed / "bin" / "python"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "model").mkdir(parents=True)
    (elsewhere / "model" / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    door, admin, base, _ = free_ports(4)
    words = [
        "render",
        "model",
        "--workers",
        "2",
        "--gpus",
        "0,1",
        "--vllm-command",
        "/bin/true",
        "--out",
        "out",
    ]
    words += ["--port", str(door), "--admin-port", str(admin), "--base-port", str(base)]

    def rendered_by(interpreter: str) -> dict[str, str]:
        program = [interpreter, "-m", "vllm_stack", *words]
        subprocess.run(program, cwd=elsewhere, check=True, capture_output=True, timeout=60)
        texts = {path.name: path.read_text() for path in (elsewhere / "out").iterdir() if path.is_file()}
        # The one thing that must differ: each is run by the interpreter it was installed for.
        return {name: text.replace(interpreter, "PYTHON") for name, text in texts.items()}

    files = rendered_by(str(python))
    assert files == rendered_by(sys.executable)
    assert "[program:worker-1]" in files["supervisord.conf"]
    assert (installed / "bin" / "vllm-stack").exists()
