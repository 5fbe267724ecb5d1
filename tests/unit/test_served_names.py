"""The names that clients may say: what vLLM is told, the aliases, and the adapters."""

from __future__ import annotations

import pytest

from tests.unit.boxes import inventory, options
from vllm_stack.errors import UsageError
from vllm_stack.planning.deployment import Deployment, check_distinct
from vllm_stack.served_names import served_names


@pytest.mark.parametrize(
    ("aliases", "args", "names"),
    [
        ((), "", ("org/model",)),
        (("chat", "gpt"), "", ("org/model", "chat", "gpt")),
        (("chat", "org/model", "chat"), "", ("org/model", "chat")),
        ((), "--served-model-name a b --seed 1", ("a", "b")),
        ((), "--served-model-name=a", ("a",)),
        ((), "--served_model_name a a", ("a",)),
        ((), "--served a", ("a",)),
        ((), "--served-model-name a --served-model-name b", ("b",)),
        ((), "--served-model-name", ("org/model",)),
        ((), "--lora-modules sql=/adapters/sql fr=/adapters/fr", ("org/model", "sql", "fr")),
        (("chat",), "--lora-modules sql=/a", ("org/model", "chat", "sql")),
        ((), '--lora-modules {"name":"sql","path":"/a"} fr=/b', ("org/model", "sql", "fr")),
        # What vLLM will refuse.
        ((), '--lora-modules {"name":5} {"path":"/a"} {x =/a', ("org/model",)),
    ],
)
def test_a_model_answers_to_what_its_vllm_is_told(
    aliases: tuple[str, ...], args: str, names: tuple[str, ...]
) -> None:
    assert served_names(options(aliases=aliases, vllm_args=tuple(args.split())), "org/model") == names


@pytest.mark.parametrize(
    ("one", "two", "name"),
    [
        ({}, {}, "org/model"),
        ({"aliases": ("x",)}, {"vllm_args": ("--served-model-name", "y", "x")}, "x"),
        ({"vllm_args": ("--lora-modules", "x=/a")}, {"vllm_args": ("--served-model-name", "x")}, "x"),
    ],
)
def test_two_models_cannot_share_a_name(one: dict[str, object], two: dict[str, object], name: str) -> None:
    models = [Deployment(options(**changes), inventory()) for changes in (one, two)]
    with pytest.raises(UsageError, match=f"Two models are called '{name}'"):
        check_distinct(models)


def test_one_model_may_say_a_name_twice() -> None:
    check_distinct([Deployment(options(aliases=("x", "x", "org/model")), inventory())])
