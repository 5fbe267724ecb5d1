"""The command line as a user types it: exit codes, one clear line, nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.refusal import assert_refused
from vllm_stack import cli

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A directory with a model of nine heads and a vLLM that could be run."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"num_attention_heads": 9}))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    return tmp_path


@pytest.fixture(autouse=True)
def in_the_box(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in the box, without a GPU driver, on free ports and with its vLLM unless told otherwise."""
    monkeypatch.chdir(box)
    for name in os.environ:
        if name.startswith(("VLLM_STACK", "CUDA")):
            monkeypatch.delenv(name)
    port, admin_port, base_port, _ = free_ports(4)
    monkeypatch.setenv("VLLM_STACK_VLLM_COMMAND", str(box / "vllm"))
    monkeypatch.setenv("VLLM_STACK_PORT", str(port))
    monkeypatch.setenv("VLLM_STACK_ADMIN_PORT", str(admin_port))
    monkeypatch.setenv("VLLM_STACK_BASE_PORT", str(base_port))


@pytest.fixture
def run() -> Run:
    """Run `vllm-stack` in a process of its own."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "vllm_stack", *args],
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )

    return run


def test_render_writes_a_whole_stack_for_its_owner_alone(run: Run, box: Path) -> None:
    result = run("render", "model", "--device", "cpu", "--workers", "2")
    assert result.returncode == 0, result.stderr
    out = box / "out"
    names = {path.name for path in out.iterdir()}
    assert names == {
        "supervisord.conf",
        "gunicorn.conf.py",
        "proxy.json",
        "worker-0.json",
        "worker-1.json",
        "stack.json",
        "secrets",
        "logs",
        "monitoring",
        "run",
    }
    for path in (out, *out.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert "supervisord -c out/supervisord.conf" in result.stdout


def test_rendering_again_changes_no_byte(run: Run, box: Path) -> None:
    def contents() -> dict[Path, bytes]:
        assert run("render", "model", "--device", "cpu", "--api-key", "k").returncode == 0
        return {path: path.read_bytes() for path in (box / "out").rglob("*") if path.is_file()}

    assert contents() == contents()


@pytest.mark.parametrize(
    ("args", "code", "names"),
    [
        (["render", "model", "--workes", "2"], 2, ["--workes", "--workers"]),
        (["rendr", "model"], 2, ["rendr"]),
        (["render"], 2, ["MODEL"]),
        (["render", "model", "--workers", "0"], 2, ["--workers", "0"]),
        (["render", "model", "--workers", "-3"], 2, ["--workers", "-3"]),
        (["render", "model", "--workers", "two"], 2, ["--workers", "two"]),
        (["render", "model", "--port", "70000"], 2, ["--port", "70000"]),
        (["render", "model", "--policy", "best"], 2, ["--policy", "best"]),
        (["render", "model", "--gpus", "0", "--device", "cpu"], 2, ["--gpus", "--device"]),
        (["render", "model", "--gpus", "x"], 2, ["--gpus", "x"]),
        (["render", "model", "--device", "cpu", "--", "--port", "1"], 2, ["--port", "--base-port"]),
        (["render", "model", "--api-key", "söt"], 2, ["API key"]),
        (["render", "model", "--api-key-file", "none"], 2, ["--api-key-file", "none"]),
        (["render", "model", "--workers", "0"], 2, ["--workers 0", "--upstream"]),
        (["render", "model", "--upstream", "https://gpu2"], 2, ["https://gpu2", "http", "ssh"]),
        (["render", "model", "--upstream", "http://gpu2:8000/v1"], 2, ["/v1", "http://gpu2:8000"]),
        (["render", "model", "--upstream", "http://gpu2", "--upstream-key-file", "none"], 2, ["none"]),
        (["render", "model", "--cors-origin", "app.example"], 2, ["app.example", "scheme://host"]),
        (["render", "model", "--tls-cert", "c.pem"], 2, ["c.pem", "--tls-key"]),
        (["render", "model", "--tls-cert", "c.pem", "--tls-key", "k.pem"], 2, ["c.pem", "No such file"]),
        (["render", "nomodel/", "--device", "cpu"], 1, ["nomodel/"]),
        (["render", "a\nb", "--device", "cpu"], 1, ["a\\nb"]),
        (["render", "it's", "--device", "cpu"], 1, ["it's"]),
        (["render", "a ;b", "--device", "cpu"], 1, ["a ;b"]),
        (["render", "50%", "--device", "cpu"], 1, ["50%"]),
        (["render", "model"], 1, ["No GPU can be used", "--device cpu"]),
        (["render", "model", "--device", "cpu", "--tensor-parallel-size", "2"], 1, ["9", "2"]),
        (["render", "model", "--device", "cpu", "--vllm-command", "nollm"], 1, ["nollm", "--vllm-command"]),
        (["render", "model", "--device", "cpu", "--out", "model/config.json"], 1, ["config.json"]),
        (["render", "model", "--device", "cpu", "--out", "/proc/none"], 1, ["/proc/none"]),
        (["render", "model", "--device", "cpu", "--out", "a b"], 1, ["a b", "--out"]),
        (["render", "model", "--device", "cpu", "--port", "5000", "--admin-port", "5000"], 1, ["5000"]),
        (["down"], 1, ["out", "vllm-stack render"]),
        (["wait", "--out", "nowhere"], 1, ["nowhere"]),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_written(
    box: Path, capfd: pytest.CaptureFixture[str], args: list[str], code: int, names: list[str]
) -> None:
    """In this process, as there are many of them."""
    sentence, whole = assert_refused(box, capfd, args, code)
    assert all(name in sentence for name in names), sentence
    if code == 1:
        assert whole == sentence


def test_a_port_in_use_is_named_with_its_owner(run: Run, box: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = run("render", "model", "--device", "cpu", "--base-port", port)
    assert result.returncode == 1
    assert port in result.stderr
    assert str(os.getpid()) in result.stderr
    assert not (box / "out").exists()


def test_the_key_is_on_no_screen_and_in_no_file(run: Run, box: Path) -> None:
    result = run("render", "model", "--device", "cpu", "--api-key", "sk-deeply-secret")
    assert result.returncode == 0
    assert "sk-deeply-secret" not in result.stdout + result.stderr
    assert not any(
        b"sk-deeply-secret" in path.read_bytes() for path in (box / "out").rglob("*") if path.is_file()
    )


def test_dry_run_shows_the_files_and_writes_none(run: Run, box: Path) -> None:
    result = run("render", "model", "--device", "cpu", "--dry-run")
    assert result.returncode == 0
    assert "[program:worker-0]" in result.stdout
    assert not (box / "out").exists()


def test_json_gives_the_plan_for_programs(run: Run) -> None:
    result = run("render", "model", "--device", "cpu", "--workers", "2", "--json")
    plan = json.loads(result.stdout)
    assert [worker["name"] for worker in plan["workers"]] == ["worker-0", "worker-1"]
    assert plan["notes"]


def test_every_option_can_come_from_the_environment(run: Run) -> None:
    result = run("render", "model", "--json", VLLM_STACK_WORKERS="3", VLLM_STACK_DEVICE="cpu")
    assert len(json.loads(result.stdout)["workers"]) == 3


def test_help_teaches_and_names_the_next_steps(run: Run) -> None:
    result = run("--help")
    assert result.returncode == 0
    assert "supervisord -c out/supervisord.conf" in result.stdout
    assert "--tensor-parallel-size" in run("render", "--help").stdout


def test_a_bug_of_ours_asks_to_be_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vllm_stack.commands import down

    def fail(out: Path) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(down, "stop_stack", fail)
    assert cli.run(["down"]) == 3
    assert "boom" in (err := capsys.readouterr().err)
    assert "report" in err


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_stack.commands import down

    def interrupt(out: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(down, "stop_stack", interrupt)
    assert cli.run(["down"]) == 130


def test_ctrl_c_before_anything_has_begun_ends_without_a_word(run: Run, box: Path) -> None:
    """Even while the command line's own modules are imported; a module of theirs types it here."""
    shim = box / "shim"
    shim.mkdir()
    (shim / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    result = run("up", PYTHONPATH=str(shim))
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


@pytest.mark.parametrize(
    ("args", "budget"), [(["--help"], 0.3), (["render", "model", "--device", "cpu"], 0.5)]
)
def test_the_command_line_answers_at_once(run: Run, args: list[str], budget: float) -> None:
    """CPU seconds, the best of five: on a loaded machine the cache misses of others count as ours."""

    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(*args).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(5)) < budget
