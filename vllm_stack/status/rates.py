"""What happens in a second, from two looks at what only counts up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vllm_stack.status.figures import Figures
from vllm_stack.status.traffic import Traffic


@dataclass(frozen=True, slots=True)
class TokenRates:
    """Tokens a second into a server's prompts and out of its engines; None where nobody can tell."""

    tokens_in: float | None = None
    tokens_out: float | None = None


@dataclass(frozen=True, slots=True)
class TrafficRates:
    """Requests that ended, and those of them that were errors, a second."""

    requests: float | None = None
    errors: float | None = None


def token_rates(before: Figures | None, after: Figures | None) -> TokenRates:
    """Compare two looks at one server; one that was started in between has no rates yet."""
    if before is None or after is None:
        return TokenRates()
    seconds = after.at - before.at
    return TokenRates(
        _rate(before.prompt_tokens, after.prompt_tokens, seconds),
        _rate(before.generated_tokens, after.generated_tokens, seconds),
    )


def traffic_rates(before: Traffic | None, after: Traffic | None) -> TrafficRates:
    """Compare two looks at the proxy."""
    if before is None or after is None:
        return TrafficRates()
    seconds = after.at - before.at
    return TrafficRates(
        _rate(before.requests, after.requests, seconds), _rate(before.errors, after.errors, seconds)
    )


def tokens_out(looks: Sequence[Figures | None]) -> list[float | None]:
    """Give what came out of a server between each look and the next."""
    return [token_rates(before, after).tokens_out for before, after in pairwise(looks)]


def _rate(before: float | None, after: float | None, seconds: float) -> float | None:
    if before is None or after is None or seconds <= 0 or after < before:
        return None
    return (after - before) / seconds
