"""What no sane user types, but scripts do: one clear line, never a traceback, and no waiting for ever."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.refusal import assert_refused
from vllm_stack import cli

# What Python makes of the byte 0xff in an argument.
BYTE = "\udcff"
NO_HOME = "~nosuchuser/x"
RENDER = ["render", "model", "--device", "cpu"]
SHOWN = r"'\udcff'"


@pytest.fixture(autouse=True)
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a model of nine heads and a vLLM that could be run; the tests stand in it."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"num_attention_heads": 9}))
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith(("VLLM_STACK", "CUDA", "HF_")):
            monkeypatch.delenv(name)
    port, admin_port, base_port, _ = free_ports(4)
    monkeypatch.setenv("VLLM_STACK_VLLM_COMMAND", str(vllm))
    monkeypatch.setenv("VLLM_STACK_PORT", str(port))
    monkeypatch.setenv("VLLM_STACK_ADMIN_PORT", str(admin_port))
    monkeypatch.setenv("VLLM_STACK_BASE_PORT", str(base_port))
    return tmp_path


def command_line(*args: str) -> list[str]:
    return [sys.executable, "-m", "vllm_stack", *args]


@pytest.mark.parametrize(
    ("args", "code", "names"),
    [
        (["render", BYTE, "--device", "cpu"], 2, ["MODEL", SHOWN]),
        ([*RENDER, "--revision", BYTE], 2, ["--revision", SHOWN]),
        ([*RENDER, "--host", BYTE], 2, ["--host", SHOWN]),
        ([*RENDER, "--out", BYTE], 2, ["--out", SHOWN]),
        ([*RENDER, "--vllm-command", BYTE], 2, ["--vllm-command", SHOWN]),
        ([*RENDER, "--open-route", "/" + BYTE], 2, ["--open-route", r"'/\udcff'"]),
        ([*RENDER, "--api-key", BYTE], 2, ["API key"]),
        ([*RENDER, "--tls-cert", BYTE, "--tls-key", "k"], 2, ["--tls-cert", SHOWN]),
        (["plan", "model", "--device", "cpu", "--", "--served-model-name", BYTE], 2, ["`--`", SHOWN]),
        (["check", "model", "--device", "cpu", "--gpus", BYTE], 2, [SHOWN]),
        (["fetch", BYTE], 2, ["MODEL", SHOWN]),
        (["fetch", "org/name", "--revision", BYTE], 2, ["--revision", SHOWN]),
        ([BYTE], 2, [SHOWN]),
        (["fetch", ""], 2, ["MODEL is empty"]),
        (["fetch", "org/name", "--revision", ""], 2, ["--revision is empty"]),
        ([*RENDER, "--revision", ""], 2, ["--revision is empty"]),
        ([*RENDER, "--host", ""], 2, ["--host is empty"]),
        (["fetch", NO_HOME], 2, [NO_HOME]),
        ([*RENDER, "--vllm-command", NO_HOME], 2, [NO_HOME]),
        ([*RENDER, "--tls-cert", NO_HOME, "--tls-key", "k"], 2, [NO_HOME]),
        ([*RENDER, "--api-key-file", NO_HOME], 2, [NO_HOME]),
        ([*RENDER, "--upstream-key-file", NO_HOME], 2, [NO_HOME]),
        ([*RENDER, "--", "--download-dir", NO_HOME], 2, [NO_HOME]),
        (["down", "--out", NO_HOME], 2, [NO_HOME]),
        ([*RENDER, "--", "--help"], 2, ["--help", "vllm serve --help"]),
        ([*RENDER, "--host", "a" * 64], 1, ["--host", "a" * 64]),
        ([*RENDER, "--host", "a" * 300], 1, ["--host", "a" * 300]),
        ([*RENDER, "--base-port", "65535", "--workers", "2"], 1, ["65536", "--base-port"]),
        ([*RENDER, "--vllm-command", "/" + "a" * 5000], 1, ["a" * 5000, "--vllm-command"]),
        ([*RENDER, "--api-key-file", "/" + "a" * 5000], 2, ["--api-key-file", "a" * 5000]),
        ([*RENDER, "--start-stagger", "9" * 400], 2, ["--start-stagger"]),
        *(
            ([*RENDER, option, value], 2, [option, value])
            for value in ("nan", "inf", "1e999")
            for option in (
                "--drain-timeout",
                "--queue-timeout",
                "--response-timeout",
                "--restart-delay",
                "--restart-delay-max",
                "--start-timeout",
                "--wedge-timeout",
            )
        ),
        *(([verb, "--timeout", "nan"], 2, ["--timeout", "nan"]) for verb in ("up", "wait", "drill")),
    ],
)
def test_odd_input_is_one_clear_line_and_nothing_is_written(
    box: Path, capfd: pytest.CaptureFixture[str], args: list[str], code: int, names: list[str]
) -> None:
    sentence, _ = assert_refused(box, capfd, args, code)
    assert all(name in sentence for name in names), sentence


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_in_the_environment_is_held_to_the_same(
    value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLLM_STACK_WEDGE_TIMEOUT", value)
    assert cli.run(RENDER) == 2
    assert value in capfd.readouterr().err


def test_a_text_as_long_as_no_path_can_be_goes_to_vllm_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    template = "{%- for m in messages %}" + "x" * 5000
    for words in (("--chat-template", template), ("--chat-template", "x" * 5000)):
        assert cli.run([*RENDER, "--dry-run", "--", *words]) == 0
        assert words[1] in capfd.readouterr().out


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """Let `down` raise what is put in here."""
    from vllm_stack.commands import down

    errors: list[BaseException] = []

    def fail(out: Path) -> None:
        raise errors.pop()

    monkeypatch.setattr(down, "stop_stack", fail)
    yield errors
    assert not errors


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            1,
            "vllm-stack: /x/y: Permission denied\n",
        ),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a\nb"),
            1,
            "vllm-stack: a\\nb: File name too long\n",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
    ],
)
def test_what_the_machine_does_to_us_is_no_bug_of_ours(
    failing: list[BaseException],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    code: int,
    says: str,
) -> None:
    monkeypatch.setattr(cli, "_silence", lambda stream: None)
    failing.append(error)
    assert cli.run(["down"]) == code
    assert capfd.readouterr() == ("", says)


def test_an_error_of_the_system_that_names_nothing_is_a_bug_of_ours(
    failing: list[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    failing.append(OSError(errno.EBADF, "Bad file descriptor"))
    assert cli.run(["down"]) == 3
    assert "report" in capfd.readouterr().err


def test_a_full_disk_behind_stdout_is_said_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            command_line(*RENDER, "--dry-run"), stdout=full, stderr=subprocess.PIPE, check=False, timeout=30
        )
    assert (result.returncode, result.stderr) == (1, b"vllm-stack: No space left on device\n")


def test_a_full_disk_behind_stderr_does_not_change_the_exit_code() -> None:
    with open("/dev/full", "w") as full:
        for args, code in ((["down"], 1), (["nosuchverb"], 2)):
            result = subprocess.run(command_line(*args), stderr=full, check=False, timeout=30)
            assert result.returncode == code


@pytest.mark.parametrize("args", [["--help"], ["render", "--help"], [*RENDER, "--dry-run"]])
def test_a_reader_that_leaves_is_no_failure(args: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            command_line(*args), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=30
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (0, b"")


def test_without_a_working_directory_absolute_paths_do(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_stack.errors import StackError
    from vllm_stack.layout import Layout
    from vllm_stack.passthrough import accept

    gone = box / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    words = ("--max-model-len", "4096", "--chat-template", "chat.jinja", "--config", "/etc/vllm.yaml")
    assert accept(words) == words
    assert Layout.at(box / "out").out == box / "out"
    with pytest.raises(StackError, match=r"vllm\.yaml.*working directory is gone"):
        accept(("--config", "vllm.yaml"))
    with pytest.raises(StackError, match=r"'out'.*working directory is gone"):
        Layout.at(Path("out"))


@pytest.mark.timeout(30)
def test_nothing_waits_for_a_fifo(box: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(box / "fifo", 0o600)
    os.mkfifo(box / "model" / "model.safetensors.index.json")
    os.mkfifo(box / "model" / "model.safetensors")
    for option in ("--api-key-file", "--upstream-key-file"):
        assert cli.run([*RENDER, option, "fifo"]) == 2
        assert f"{option} " in (said := capfd.readouterr().err)
        assert "Not a regular file" in said
    assert cli.run([*RENDER, "--tls-cert", "fifo", "--tls-key", "fifo"]) == 2
    assert "--tls-cert" in capfd.readouterr().err
    assert cli.run([*RENDER, "--dry-run", "--", "--config", "fifo"]) == 0


def test_keys_come_from_a_pipe_of_the_shell() -> None:
    """The writer is slower than we are, as a password manager is."""
    script = 'exec "$0" -m vllm_stack render model --device cpu --dry-run --json --api-key-file'
    for rest in ("<(sleep 0.3; echo sk-1)", "/dev/stdin < <(sleep 0.3; echo sk-1)"):
        result = subprocess.run(
            ["/bin/bash", "-c", f"{script} {rest}", sys.executable],
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert result.returncode == 0, result.stderr
        # With a key the door is open to all.
        assert b"0.0.0.0" in result.stdout
