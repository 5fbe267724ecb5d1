"""Real vLLM with a speech model behind the real proxy: what is uploaded arrives whole, and is answered."""

from __future__ import annotations

import base64
import io
import json
import math
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.e2e.conftest import KEY, RealStack, client, client_at, make_model
from tests.support.processes import ProcessLedger
from vllm_stack.proxy.request import HELD_BODY

pytestmark = pytest.mark.timeout(600)

SAMPLE_RATE = 16_000  # That of the model: vLLM resamples only with further packages.


@dataclass(frozen=True)
class Sound:
    """Ten tones a second, each as high as chance has it."""

    seconds: int
    channels: int
    sample_bytes: int

    @property
    def tokens(self) -> int:
        """How many the answer has: the model says one each 80 ms, and never comes to an end by itself."""
        return self.seconds * 25 // 2

    @cached_property
    def wav(self) -> bytes:
        chance = Random(self.seconds)
        loudest = 2 ** (8 * self.sample_bytes - 1) - 1
        frames = bytearray()
        for _ in range(10 * self.seconds):
            step = 2 * math.pi * chance.uniform(100, 6000) / SAMPLE_RATE
            for index in range(SAMPLE_RATE // 10):
                sample = int(0.5 * loudest * math.sin(index * step))
                frames += sample.to_bytes(self.sample_bytes, "little", signed=True) * self.channels
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(self.channels)
            writer.setsampwidth(self.sample_bytes)
            writer.setframerate(SAMPLE_RATE)
            writer.writeframes(frames)
        return file.getvalue()


SMALL = Sound(seconds=3, channels=1, sample_bytes=2)
# The proxy holds the first whole, and the second flows through it.
LARGE = Sound(seconds=9, channels=2, sample_bytes=4)


@pytest.fixture(scope="module")
def audio_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealStack]:
    """A stack that runs, with one worker, for all tests here: loading takes half a minute."""
    model = make_model("tests.tiny_voxtral", tmp_path_factory.mktemp("models") / "tiny-voxtral")
    with ProcessLedger(grace=60) as ledger:
        stack = RealStack(tmp_path_factory.mktemp("audio"), ledger, workers=1)
        # What is computed anew is computed alike: the answers can be compared word for word.
        stack.render(model, "--no-enable-prefix-caching")
        stack.start()
        stack.wait()
        yield stack


@pytest.fixture
def proxied(audio_stack: RealStack) -> Iterator[openai.OpenAI]:
    """What everyone uses."""
    with client(audio_stack) as api:
        yield api


@pytest.fixture
def direct(audio_stack: RealStack) -> Iterator[openai.OpenAI]:
    """A client that goes around the proxy."""
    with client_at(audio_stack.worker_ports[0], audio_stack.layout.internal_key.read_text().strip()) as api:
        yield api


def transcribe(api: openai.OpenAI, sound: Sound, **options: Any) -> Any:
    return api.audio.transcriptions.create(
        model=api.models.list().data[0].id,
        file=("sound.wav", sound.wav),
        temperature=0,
        extra_body={"max_completion_tokens": sound.tokens},
        **options,
    )


@pytest.mark.parametrize("sound", [SMALL, LARGE])
def test_the_answer_to_an_upload_is_that_of_the_worker(
    proxied: openai.OpenAI, direct: openai.OpenAI, sound: Sound
) -> None:
    assert (len(sound.wav) > HELD_BODY) == (sound is LARGE)
    answer = transcribe(proxied, sound)
    assert len(answer.text.split()) == sound.tokens
    assert answer.usage.seconds == sound.seconds
    assert answer == transcribe(direct, sound)


def test_another_sound_has_another_answer(proxied: openai.OpenAI) -> None:
    """Else it would prove little that two answers are the same."""
    other = replace(SMALL, seconds=SMALL.seconds + 1)
    words, others = (transcribe(proxied, sound).text.split() for sound in (SMALL, other))
    assert words != others[: len(words)]


def test_an_answer_comes_in_pieces(proxied: openai.OpenAI) -> None:
    pieces = [chunk.choices[0] for chunk in transcribe(proxied, LARGE, stream=True)]
    assert len(pieces) > 1
    assert pieces[-1]["finish_reason"] == "length"
    assert "".join(piece["delta"]["content"] for piece in pieces) == transcribe(proxied, LARGE).text


def test_what_is_no_sound_is_the_clients_error(proxied: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="audio file"):
        proxied.audio.transcriptions.create(
            model=proxied.models.list().data[0].id, file=("sound.wav", b"no sound")
        )


# ------------------------------------------------------------------ /v1/realtime, a WebSocket


def realtime(port: int, key: str) -> ClientConnection:
    url = f"ws://127.0.0.1:{port}/v1/realtime"
    return connect(url, additional_headers={"authorization": f"Bearer {key}"}, open_timeout=30)


def hear(session: ClientConnection, model: str, sound: Sound) -> str:
    """Send a sound in pieces, as it would come from a microphone, and give what the model heard."""

    def say(kind: str, **fields: object) -> None:
        session.send(json.dumps({"type": kind, **fields}))

    assert json.loads(session.recv(30))["type"] == "session.created"
    say("session.update", model=model)
    say("input_audio_buffer.commit")
    with wave.open(io.BytesIO(sound.wav)) as reader:
        while piece := reader.readframes(SAMPLE_RATE // 10):
            say("input_audio_buffer.append", audio=base64.b64encode(piece).decode())
    say("input_audio_buffer.commit", final=True)
    deltas = []
    while (event := json.loads(session.recv(60)))["type"] != "transcription.done":
        assert event["type"] == "transcription.delta", event
        deltas.append(event["delta"])
    assert len(deltas) > 1
    assert "".join(deltas) == event["text"]
    text: str = event["text"]
    return text


def test_a_realtime_session_hears_through_the_proxy_what_the_worker_hears(
    audio_stack: RealStack, proxied: openai.OpenAI
) -> None:
    model = proxied.models.list().data[0].id
    internal = audio_stack.layout.internal_key.read_text().strip()
    with (
        realtime(audio_stack.port, KEY) as through,
        realtime(audio_stack.worker_ports[0], internal) as direct,
    ):
        assert hear(through, model, SMALL) == hear(direct, model, SMALL)


def test_a_realtime_session_needs_a_key(audio_stack: RealStack) -> None:
    for port in (audio_stack.port, audio_stack.worker_ports[0]):
        with pytest.raises(InvalidStatus, match="401"):
            realtime(port, "wrong")
