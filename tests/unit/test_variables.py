"""Every option can be set in the environment, and no variable means two things."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import pytest

from vllm_stack.cli import group
from vllm_stack.native import SWITCH
from vllm_stack.records.in_force import VARIABLE
from vllm_stack.verbs.group import Group, options_of, own_variable, with_subcommands

ALL = [
    (path, option)
    for one in group.commands.values()
    for path, verb in with_subcommands(one)
    for option in options_of(verb)
]


def meaning(option: click.Option) -> dict[str, Any]:
    """What the same option says of itself in every verb; what it is good for may be told in other words."""
    return {key: value for key, value in option.to_info_dict().items() if key != "help"}


def test_every_option_of_every_verb_has_one_variable_and_tells_it() -> None:
    for path, option in ALL:
        assert isinstance(option.envvar, str), (path, option.opts)
        assert option.envvar.startswith("VLLM_STACK_")
        assert option.show_envvar


def test_no_variable_means_two_things() -> None:
    options = defaultdict(list)
    for path, option in ALL:
        options[option.envvar].append((path, meaning(option)))
    for variable, uses in options.items():
        assert all(said == uses[0][1] for _, said in uses), (variable, [path for path, _ in uses])


def test_a_variable_that_names_no_verb_is_of_an_option_of_the_stack() -> None:
    """What a verb has for itself is declared with `click.option`, not with `cli_options.option`."""
    render = options_of(group.commands["render"])
    of_the_stack = {one.envvar for one in render} - {own_variable("render", one) for one in render}
    for path, option in ALL:
        assert option.envvar in {own_variable(path, option), *of_the_stack}, (path, option.opts)


def test_no_option_has_a_variable_that_our_programs_use_among_themselves() -> None:
    assert {option.envvar for _, option in ALL}.isdisjoint({VARIABLE, SWITCH})


def test_the_variables_of_one_verb_do_not_reach_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STACK_UP_TIMEOUT", "7")
    monkeypatch.setenv("VLLM_STACK_DRILL_YES", "1")
    monkeypatch.setenv("VLLM_STACK_STATUS_JSON", "true")
    monkeypatch.setenv("VLLM_STACK_OUT", "elsewhere")

    def settings(verb: str) -> dict[str, Any]:
        return group.commands[verb].make_context(verb, []).params

    assert settings("up") == {"out": Path("elsewhere"), "detach": False, "timeout": 7.0}
    assert settings("wait")["timeout"] == 1800
    assert settings("drill")["yes"]
    assert (settings("status")["as_json"], settings("clean")["as_json"]) == (True, False)


def test_a_subcommands_variable_has_both_names() -> None:
    inner = click.Command("put-in", params=[click.Option(["-f", "--for-ever"], is_flag=True)])
    outer = Group()
    outer.add_command(click.Group("box", commands=[inner]))
    assert [one.envvar for one in options_of(inner)] == ["VLLM_STACK_BOX_PUT_IN_FOR_EVER"]


def test_every_verb_is_listed_once_under_a_heading() -> None:
    listed = [verb.name for _, verbs in group.headings() for verb in verbs]
    assert sorted(map(str, listed)) == sorted(group.commands)
    shown = group.get_help(click.Context(group, info_name="vllm-stack"))
    assert all(f"\n{heading}:\n" in shown for heading, _ in group.headings())
