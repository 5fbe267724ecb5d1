"""What the load is made of: prompts, the order of bursts, and bursts that send just so much."""

from __future__ import annotations

import asyncio
import json

import pytest

from vllm_stack.bench.asking import CHAT, COMPLETIONS, Asking
from vllm_stack.bench.burst import Amount, Burst
from vllm_stack.bench.prompts import Length, Prompts
from vllm_stack.bench.sample import Sample
from vllm_stack.bench.sweep import Step, plan_steps


def test_no_two_prompts_begin_alike() -> None:
    prompts = [Prompts().make(50) for _ in range(2)]
    same = Prompts()
    prompts += [same.make(50) for _ in range(20)]
    assert len({prompt.split()[0] for prompt in prompts}) == len(prompts)
    assert {len(prompt.split()) for prompt in prompts} == {50}


def test_prompts_with_a_shared_prefix_differ_in_their_last_tenth() -> None:
    made = Prompts(shared=True)
    one, other = made.make(100).split(), made.make(100).split()
    assert one[:90] == other[:90]
    assert one[90] != other[90]
    assert len(one) == len(other) == 100


def test_a_prompt_has_as_many_words_as_make_its_tokens() -> None:
    length = Length.measured((20, 59), (120, 309))
    assert (length.per_word, length.around) == (2.5, 9.0)
    assert length.words(259) == 100
    assert length.words(1) == 1


def test_a_server_that_counts_nonsense_is_not_believed() -> None:
    assert Length.measured((20, 5), (120, 5)) == Length()


def test_both_ways_are_measured_by_turns() -> None:
    part = Amount(seconds=2)
    assert plan_steps((1, 8), 2, Amount(seconds=8)) == [
        Step(level, way, part) for level in (1, 8) for way in (0, 1, 1, 0, 1, 0, 0, 1)
    ]
    assert plan_steps((1, 8), 1, Amount(9)) == [Step(1, 0, Amount(9)), Step(8, 0, Amount(9))]


@pytest.mark.parametrize(
    ("requests", "level", "parts"),
    [(9, 1, [3, 2, 2, 2]), (9, 4, [5, 4]), (9, 9, [9]), (8, 2, [2, 2, 2, 2]), (1, 1, [1])],
)
def test_a_way_gets_all_its_requests_and_every_round_enough_for_all_clients(
    requests: int, level: int, parts: list[int]
) -> None:
    for way in (0, 1):
        steps = [step for step in plan_steps((level,), 2, Amount(requests)) if step.way == way]
        assert [step.amount.requests for step in steps] == parts


def test_a_load_is_asked_for_in_openais_words() -> None:
    asking = Asking("m", 5)
    chat, plain, *_, last = asking.variants()
    assert (chat, chat.path) == (asking, CHAT)
    body = json.loads(chat.body("hello"))
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["ignore_eos"], body["stream"]) == (5, True, True)
    assert "ignore_eos" not in json.loads(plain.body("hello"))
    assert last.path == COMPLETIONS
    assert json.loads(last.shortest().body("hello"))["prompt"] == "hello"


WHOLE = Sample("w", 0.1, 0.2)


def test_a_burst_sends_as_many_requests_as_it_is_told_and_no_more_at_a_time() -> None:
    at_once: list[int] = [0, 0]

    async def ask() -> Sample:
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0)
        at_once[0] -= 1
        return WHOLE

    burst = Burst("proxy", 4)
    noted: list[None] = []
    asyncio.run(burst.run(ask, Amount(10), lambda: noted.append(None)))
    assert len(burst.samples) == len(noted) == 10
    assert at_once == [0, 4]
    assert burst.seconds > 0


def test_a_burst_by_time_ends_by_itself() -> None:
    async def ask() -> Sample:
        await asyncio.sleep(0.001)
        return WHOLE

    burst = Burst("proxy", 2)
    asyncio.run(burst.run(ask, Amount(seconds=0.02), lambda: None))
    assert burst.samples
    assert burst.seconds >= 0.02


def test_a_burst_that_is_broken_off_keeps_what_has_ended() -> None:
    burst = Burst("proxy", 2)

    async def ask() -> Sample:
        if len(burst.samples) == 3:
            await asyncio.Event().wait()
        return WHOLE

    async def break_off() -> None:
        running = asyncio.create_task(burst.run(ask, Amount(100), lambda: None))
        while len(burst.samples) < 3:
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running])

    asyncio.run(break_off())
    assert len(burst.samples) == 3
    assert burst.seconds > 0
