"""What a shell completes, and the script that makes it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem, ShellComplete

from tests.unit.boxes import inventory, options, plan_for
from vllm_stack import cli
from vllm_stack.files import make_directories, write_files
from vllm_stack.render import render


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand beside a stack of two workers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VLLM_STACK_OUT", raising=False)
    plan = plan_for(options(out=tmp_path / "out"), inventory())
    make_directories(plan.layout.directories)
    write_files(render(plan))
    return plan.layout.out


def completed(*words: str) -> list[CompletionItem[str]]:
    """Give what is offered for the last word."""
    shell = ShellComplete(cli.group, {}, "vllm-stack", "_VLLM_STACK_COMPLETE")
    return shell.get_completions(list(words[:-1]), words[-1])


def values(*words: str) -> list[str]:
    return [item.value for item in completed(*words)]


@pytest.mark.usefixtures("out")
def test_verbs_options_and_choices_are_completed() -> None:
    assert "status" in values("st")
    assert values("render", "--tens") == ["--tensor-parallel-size"]
    assert values("render", "model", "--device", "c") == ["cuda", "cpu"]


def test_a_worker_is_completed_from_the_stack_that_is_named(out: Path) -> None:
    assert values("drill", "--worker", "w") == ["worker-0", "worker-1"]
    out.rename(out.with_name("elsewhere"))
    assert values("drill", "--worker", "w") == []
    assert values("drill", "--out", "elsewhere", "--worker", "worker-1") == ["worker-1"]


def test_a_damaged_stack_completes_nothing_and_says_nothing(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (out / "stack.json").write_text("[")
    assert values("drill", "--worker", "") == []
    assert capfd.readouterr() == ("", "")


def test_a_model_and_files_are_left_to_the_shell() -> None:
    assert [item.type for item in completed("render", "mod")] == ["dir"]
    assert [item.type for item in completed("render", "--file", "sta")] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_asks_this_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_VLLM_STACK_COMPLETE={shell}_complete" in script
    if shell == "bash" and (bash := shutil.which("bash")):
        subprocess.run([bash, "-n"], input=script, text=True, check=True, timeout=10)


def test_another_shell_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["completion", "ksh"]) == 2
    assert "bash" in capsys.readouterr().err
