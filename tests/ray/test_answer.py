"""Deploy and answer: what `render --target ray` writes serves on one box, and ends without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.e2e.conftest import client
from tests.ray.conftest import ALIAS, NAME, Head, chat, shared_memory
from tests.support.polling import until
from tests.support.processes import ProcessLedger


@pytest.fixture
def api(head: Head) -> Iterator[openai.OpenAI]:
    with client(head) as api:
        yield api


def test_a_chat_and_a_stream_are_answered_by_name_and_by_alias(api: openai.OpenAI) -> None:
    for name in (NAME, ALIAS):
        answer = chat(api, name)
        assert (answer.model, answer.usage.completion_tokens) == (NAME, 5)
        deltas = list(chat(api, name, 6, stream=True))
        assert deltas[-1].choices[0].finish_reason == "length"
        assert sum(bool(delta.choices[0].delta.content) for delta in deltas) > 1


def test_the_models_are_listed_as_vllm_lists_them(api: openai.OpenAI) -> None:
    listed = api.models.list().data
    assert [model.id for model in listed] == [NAME, ALIAS]
    assert {model.model_dump()["max_model_len"] for model in listed} == {1024}
    assert {model.owned_by for model in listed} == {"vllm"}


def test_the_door_asks_for_the_key_that_was_given(head: Head) -> None:
    with client(head, "sk-of-nobody") as api, pytest.raises(openai.AuthenticationError) as raised:
        chat(api)
    assert raised.value.code == "invalid_api_key"


def test_an_unknown_model_is_refused_as_vllm_refuses_it(api: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        chat(api, "no-such-model")
    assert raised.value.body == {
        "message": "The model `no-such-model` does not exist.",
        "type": "NotFoundError",
        "param": "model",
        "code": 404,
    }


def test_status_shows_the_cluster_as_ready(head: Head) -> None:
    result = head.vllm_stack("status")
    assert result.returncode == 0, result.stdout
    assert "ray" in result.stdout
    assert "ready" in result.stdout


def test_verbs_that_are_for_workers_under_supervisord_say_so(head: Head) -> None:
    for verb in (["roll"], ["drill", "--yes"]):
        result = head.vllm_stack(*verb)
        assert result.returncode == 2, result.stdout
        assert "Ray" in result.stderr


def test_down_leaves_nothing(head: Head, ledger: ProcessLedger) -> None:
    """Last: it ends the stack."""
    result = head.vllm_stack("down")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No process of the stack is left" in result.stdout
    until(lambda: not ledger.alive(), 10, "no process is left")
    assert not shared_memory() - head.before
