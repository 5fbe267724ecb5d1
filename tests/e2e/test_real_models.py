"""Two real vLLM servers with different models behind the real proxy: each request finds its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import requests

from tests.e2e.conftest import KEY, RealStack, client, make_model
from tests.e2e.test_real_audio import LARGE, SMALL, Sound
from tests.support.processes import ProcessLedger

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RealStack]:
    """A stack that runs, of a model that writes and one that hears; a worker each."""
    voxtral = make_model("tests.tiny_voxtral", tmp_path_factory.mktemp("models") / "tiny-voxtral")
    short = ["--max-model-len", "1024"]
    with ProcessLedger(grace=60) as ledger:
        stack = RealStack(tmp_path_factory.mktemp("several"), ledger)
        stack.render_models(
            {"model": str(tiny_model), "aliases": ["writer"], "vllm-args": short},
            {"model": str(voxtral), "vllm-args": [*short, "--served-model-name", "hearer"]},
        )
        stack.start()
        stack.wait()
        yield stack


@pytest.fixture
def api(models: RealStack) -> Iterator[openai.OpenAI]:
    with client(models) as api:
        yield api


def transcribe(api: openai.OpenAI, sound: Sound, model: str) -> list[str]:
    answer = api.audio.transcriptions.create(
        model=model, file=("sound.wav", sound.wav), extra_body={"max_completion_tokens": sound.tokens}
    )
    return answer.text.split()


def test_every_name_is_listed_with_what_its_vllm_tells(api: openai.OpenAI, tiny_model: Path) -> None:
    listed = {model.id: model for model in api.models.list().data}
    assert list(listed) == [str(tiny_model), "writer", "hearer"]
    assert {model.model_dump()["max_model_len"] for model in listed.values()} == {1024}


def test_a_chat_finds_its_model_by_name_and_by_alias(api: openai.OpenAI, tiny_model: Path) -> None:
    for name in (str(tiny_model), "writer"):
        answer = api.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Hello"}], max_tokens=5
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
    deltas = api.chat.completions.create(
        model="writer", messages=[{"role": "user", "content": "Hello"}], max_tokens=5, stream=True
    )
    assert [chunk.choices[0].finish_reason for chunk in deltas][-1] == "length"


@pytest.mark.parametrize("sound", [SMALL, LARGE])
def test_an_upload_finds_its_model_however_large(api: openai.OpenAI, sound: Sound) -> None:
    assert len(transcribe(api, sound, "hearer")) == sound.tokens


def test_what_a_model_cannot_do_its_vllm_says(api: openai.OpenAI) -> None:
    """The request did not go to the other one, which could."""
    with pytest.raises(openai.APIStatusError) as raised:
        transcribe(api, SMALL, "writer")
    assert raised.value.status_code in (400, 404)
    assert raised.value.code != "model_not_found"


def test_a_name_that_no_model_has_is_a_404_and_none_a_400(api: openai.OpenAI, models: RealStack) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        api.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hello"}])
    assert unknown.value.code == "model_not_found"
    answer = requests.post(
        f"http://127.0.0.1:{models.port}/v1/chat/completions",
        json={"messages": [{"role": "user", "content": "Hello"}]},
        headers={"authorization": f"Bearer {KEY}"},
        timeout=30,
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_status_says_which_worker_serves_what(models: RealStack, tiny_model: Path) -> None:
    told = json.loads(models.vllm_stack("status", "--json").stdout)
    states = {worker["model"]: worker["state"] for worker in told["workers"]}
    assert states == {str(tiny_model): "ready", "hearer": "ready"}
    assert "hearer" in models.vllm_stack("status").stdout


def test_stopping_one_model_leaves_the_other(models: RealStack, api: openai.OpenAI) -> None:
    """The last one here: it stops what the others use."""
    door = f"http://127.0.0.1:{models.port}/health"
    assert requests.get(door, timeout=10).status_code == 200
    models.supervisorctl("stop", "workers:worker-1")
    assert requests.get(door, timeout=10).status_code == 503
    assert requests.get(door, params={"model": "writer"}, timeout=10).status_code == 200
    api.chat.completions.create(model="writer", messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
    with pytest.raises(openai.InternalServerError):
        transcribe(api, SMALL, "hearer")
    assert "hearer" in [model.id for model in api.models.list().data]
