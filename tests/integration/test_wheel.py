"""The wheel is the whole program: installed elsewhere, it renders what the checkout renders."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.ports import free_ports

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it, in the environment of the tests."""
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return next(out.glob("vllm_stack-*.whl"))


@pytest.mark.timeout(600)
def test_a_wheel_installed_in_an_empty_environment_renders_the_same_files(
    wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, timeout=500)

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

    installed = rendered_by(str(python))
    assert installed == rendered_by(sys.executable)
    assert "[program:worker-1]" in installed["supervisord.conf"]
    assert (environment / "bin" / "vllm-stack").exists()
