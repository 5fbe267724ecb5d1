"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from vllm_stack.cli import group
from vllm_stack.reference import causes
from vllm_stack.reference.verbs import reference
from vllm_stack.verbs.group import options_of, with_subcommands

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_page_is_what_the_commands_say() -> None:
    assert PAGE.read_text("utf-8") == reference(), "the commands have changed: run `make docs`"


def test_every_verb_has_a_section_and_every_option_a_row() -> None:
    page = reference()
    for path, verb in (found for one in group.commands.values() for found in with_subcommands(one)):
        assert page.count(f"\n### vllm-stack {path}\n") == 1
        for option in options_of(verb):
            assert f"<br>`{option.envvar}` |" in page


def test_a_verb_that_takes_the_options_of_the_stack_tells_only_its_own() -> None:
    _, _, section = reference().partition("### vllm-stack check\n")
    section = section.partition("\n### ")[0]
    assert "[render](#vllm-stack-render)" in section
    assert "VLLM_STACK_CHECK_JSON" in section
    assert "VLLM_STACK_WORKERS" not in section


def test_a_row_survives_bars_and_lines_in_a_help_text(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = click.Option(["--odd"], type=click.Choice(["a", "b"]), help="a | b\nand more  [default: a|b]")
    odd.envvar = "VLLM_STACK_DOWN_ODD"
    monkeypatch.setattr(group.commands["down"], "params", [odd])
    assert r"| `--odd [a\|b]`<br>`VLLM_STACK_DOWN_ODD` | a\|b | a \| b and more |" in reference()


def test_the_pages_are_written_where_one_says_and_the_machine_does_not_show(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "vllm_stack.reference", str(tmp_path)]
    odd = {"COLUMNS": "40", "VLLM_STACK_PORT": "1", "HOME": str(tmp_path), "PATH": ""}
    subprocess.run(argv, check=True, timeout=30, env=odd, cwd=PAGE.parents[1])
    assert (tmp_path / "cli.md").read_text("utf-8") == reference()
    assert (tmp_path / "causes.md").read_text("utf-8") == causes.reference()
