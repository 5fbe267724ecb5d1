"""Before the load: whether, and how, the model is to be asked, and how long a prompt is to be."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_stack.bench.asking import Asking
from vllm_stack.bench.caller import Caller
from vllm_stack.bench.prompts import Length, Prompts
from vllm_stack.bench.sample import Sample
from vllm_stack.bench.way import PROXY, Way
from vllm_stack.errors import StackError, UsageError

_SHORT, _LONG = 20, 120  # words
# A server that is asked in another way may take it; with these it is no matter of the way.
_FINAL = ("401", "403", "429", "503")


async def choose_asking(caller: Caller, asking: Asking, prompts: Prompts) -> Asking:
    """Find out what is served: chat or completions, of a fixed length if the server can.

    Raises `UsageError` for a key that is not taken, `StackError` with what the first try was told.
    """
    first: Sample | None = None
    for variant in asking.variants():
        sample = await caller.ask(variant.shortest(), prompts.make(_SHORT))
        if sample.is_whole:
            return variant
        first = first or sample
        if sample.error is None or sample.error[:1] != "4" or sample.error.startswith(_FINAL):
            break
    assert first is not None  # noqa: S101 - there is a variant
    raise _trouble(caller.way, first)


async def measure_length(caller: Caller, asking: Asking, prompts: Prompts) -> Length:
    """Learn from the server's own count how many tokens a word is; one, if it does not count."""
    counted = []
    for words in (_SHORT, _LONG):
        sample = await caller.ask(asking.shortest(), prompts.make(words))
        if not sample.is_whole or sample.prompt_tokens is None:
            return Length()
        counted.append((words, sample.prompt_tokens))
    return Length.measured(*counted)


def check_answers(way: Way, samples: Sequence[Sample]) -> None:
    """Raise `StackError` when none of these requests got its answer."""
    if samples and not any(sample.is_whole for sample in samples):
        raise _trouble(way, samples[0])


def _trouble(way: Way, sample: Sample) -> StackError:
    who = "The door" if way.name == PROXY else sample.server
    kind = sample.error or ""
    if kind.startswith("401") and way.name == PROXY:
        wants = "does not take this key" if way.servers[0].key else "asks for a key"
        return UsageError(f"The door {wants}: --api-key-file FILE")
    said = f"{kind} ({sample.detail})" if sample.detail else kind
    return StackError(f"{who} gives no streamed completion: {said}")
