"""A sweep over numbers of clients, both ways in turn, so that what drifts favours neither."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from vllm_stack.bench.asking import Asking
from vllm_stack.bench.burst import Amount, Burst
from vllm_stack.bench.caller import Caller
from vllm_stack.bench.preflight import check_answers, choose_asking, measure_length
from vllm_stack.bench.prompts import Prompts
from vllm_stack.bench.sample import Sample
from vllm_stack.bench.way import Way

# Who goes first in each round.
_TURNS = ((0, 1), (1, 0), (1, 0), (0, 1))
# Requests to every server before the first that counts: some things happen only once.
_WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Load:
    """What is sent: the amount at each number of clients and each way; a prompt has about so many tokens."""

    asking: Asking
    levels: tuple[int, ...]
    amount: Amount
    prompt_tokens: int
    shared_prefix: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One burst to come."""

    level: int
    way: int
    amount: Amount


def plan_steps(levels: Sequence[int], ways: int, amount: Amount) -> list[Step]:
    """Give the bursts in order; with two ways they take turns at each level, A B B A B A A B.

    So a load that changes with time weighs on both alike, and every round of the two is a comparison of
    its own.
    """
    if ways == 1:
        return [Step(level, 0, amount) for level in levels]
    return [
        Step(level, way, part)
        for level in levels
        for part, order in zip(_parts(amount, level), _TURNS, strict=False)
        for way in order
    ]


def _parts(amount: Amount, level: int) -> list[Amount]:
    """Share the amount out among the rounds: as many of them as have something to do for every client."""
    if amount.requests is None:
        return [Amount(seconds=amount.seconds / len(_TURNS))] * len(_TURNS)
    rounds = min(len(_TURNS), max(1, amount.requests // level))
    each, more = divmod(amount.requests, rounds)
    return [Amount(each + (number < more)) for number in range(rounds)]


class Sweep:
    """Runs it; `bursts` holds what has been measured, also when it is broken off."""

    def __init__(self, ways: Sequence[Way], load: Load) -> None:
        self.ways = ways
        self.load = load
        self.steps = plan_steps(load.levels, len(ways), load.amount)
        self.asking = load.asking
        self.bursts: list[Burst] = []

    async def run(self, step_begins: Callable[[Step, Way], object], noted: Callable[[], object]) -> None:
        """Find out how to ask, warm up, and measure step after step.

        `step_begins` and `noted` are called for every step and every request that ends. Raises
        `StackError` when a way does not answer.
        """
        prompts = Prompts(self.load.shared_prefix)
        async with AsyncExitStack() as held:
            callers = [await held.enter_async_context(Caller(way)) for way in self.ways]
            self.asking = await choose_asking(callers[0], self.load.asking, prompts)
            length = await measure_length(callers[0], self.asking, prompts)
            words = length.words(self.load.prompt_tokens)
            asks = [functools.partial(self._ask, caller, prompts, words) for caller in callers]
            servers = max(len(way.servers) for way in self.ways)
            for caller, ask in zip(callers, asks, strict=True):
                warm_up = Burst(caller.way.name, servers * _WARM_UP)
                await warm_up.run(ask, Amount(servers * _WARM_UP), lambda: None)
                check_answers(caller.way, warm_up.samples)
            for step in self.steps:
                step_begins(step, self.ways[step.way])
                await self._measure(step, asks[step.way], noted)

    async def _measure(
        self, step: Step, ask: Callable[[], Awaitable[Sample]], noted: Callable[[], object]
    ) -> None:
        burst = Burst(self.ways[step.way].name, step.level)
        self.bursts.append(burst)
        await burst.run(ask, step.amount, noted)

    async def _ask(self, caller: Caller, prompts: Prompts, words: int) -> Sample:
        return await caller.ask(self.asking, prompts.make(words))
