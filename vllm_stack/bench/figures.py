"""What a sweep comes to: figures of each level and way, and what the proxy adds. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from vllm_stack.bench.burst import Burst
from vllm_stack.bench.quantiles import Quantiles
from vllm_stack.bench.sample import Objective, Sample
from vllm_stack.bench.way import DIRECT, PROXY

# Of a core; beyond this the load generator's own waiting is in the figures.
BUSY = 0.8


@dataclass(frozen=True, slots=True)
class Figures:
    """One level, one way. Times in seconds, rates a second; `cpu` is the load generator's share of a core.

    `good` is the goodput: requests that met the objective, a second.
    """

    way: str
    concurrency: int
    requests: int
    errors: dict[str, int]
    details: dict[str, str]
    seconds: float
    first: Quantiles
    gap: Quantiles
    per_token: Quantiles
    total: Quantiles
    prompt_tokens: int | None
    output_tokens: int | None
    good: float | None
    servers: dict[str, int]
    cpu: float

    @property
    def whole(self) -> int:
        return self.requests - sum(self.errors.values())

    @property
    def requests_per_second(self) -> float:
        return self.whole / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float | None:
        if self.output_tokens is None:
            return None
        return self.output_tokens / self.seconds if self.seconds else 0.0

    @property
    def generator_is_busy(self) -> bool:
        return self.cpu > BUSY


@dataclass(frozen=True, slots=True)
class Difference:
    """What the proxy adds to a median, in seconds: over all, and in the round where it is least and most."""

    overall: float
    least: float
    most: float

    @property
    def is_noise(self) -> bool:
        """The rounds do not even agree on whether it is something."""
        return self.least <= 0.0 <= self.most


@dataclass(frozen=True, slots=True)
class Cost:
    """What the proxy adds at a level; None where one of the ways has nothing to compare."""

    concurrency: int
    first: Difference | None
    gap: Difference | None


def figures_of(bursts: Sequence[Burst], objective: Objective) -> list[Figures]:
    """Put the bursts of each level and way together, in the order in which these were measured."""
    together: dict[tuple[int, str], list[Burst]] = {}
    for burst in bursts:
        if burst.samples:
            together.setdefault((burst.concurrency, burst.way), []).append(burst)
    return [_figures(some, objective) for some in together.values()]


def costs_of(bursts: Sequence[Burst]) -> list[Cost]:
    """Say what the proxy adds at each level that was measured both ways."""
    costs = []
    for level in dict.fromkeys(burst.concurrency for burst in bursts):
        rounds = [
            list(zip(_values(bursts, level, PROXY, of), _values(bursts, level, DIRECT, of), strict=False))
            for of in (_first, _gaps)
        ]
        if any(rounds):
            costs.append(Cost(level, *(_difference(pairs) for pairs in rounds)))
    return costs


def _figures(bursts: Sequence[Burst], objective: Objective) -> Figures:
    samples = [sample for burst in bursts for sample in burst.samples]
    whole = [sample for sample in samples if sample.is_whole]
    failed = [sample for sample in samples if not sample.is_whole]
    seconds = sum(burst.seconds for burst in bursts)
    good = sum(objective.is_met(sample) for sample in samples)
    return Figures(
        way=bursts[0].way,
        concurrency=bursts[0].concurrency,
        requests=len(samples),
        errors=dict(Counter(sample.error or "" for sample in failed).most_common()),
        details={sample.error or "": sample.detail for sample in reversed(failed)},
        seconds=seconds,
        first=Quantiles.of(_first(whole)),
        gap=Quantiles.of(_gaps(whole)),
        per_token=Quantiles.of(one.per_token for one in whole if one.per_token is not None),
        total=Quantiles.of(one.last for one in whole if one.last is not None),
        prompt_tokens=_sum([one.prompt_tokens for one in whole]),
        output_tokens=_sum([one.output_tokens for one in whole]),
        good=good / seconds if objective.asks and seconds else None,
        servers=dict(sorted(Counter(sample.server for sample in samples).items())),
        cpu=sum(burst.cpu_seconds for burst in bursts) / seconds if seconds else 0.0,
    )


def _sum(counted: Sequence[int | None]) -> int | None:
    """Add up what servers counted; None if one of them did not."""
    known = [one for one in counted if one is not None]
    return sum(known) if len(known) == len(counted) else None


def _first(samples: Sequence[Sample]) -> list[float]:
    return [sample.first for sample in samples if sample.first is not None]


def _gaps(samples: Sequence[Sample]) -> list[float]:
    return [gap for sample in samples for gap in sample.gaps]


def _values(
    bursts: Sequence[Burst], level: int, way: str, of: Callable[[Sequence[Sample]], list[float]]
) -> list[list[float]]:
    """Give the values of each round of a level and way."""
    return [
        of([sample for sample in burst.samples if sample.is_whole])
        for burst in bursts
        if (burst.concurrency, burst.way) == (level, way)
    ]


def _difference(rounds: Sequence[tuple[list[float], list[float]]]) -> Difference | None:
    """Compare the medians of two ways, given the values of both in each round."""
    pairs = [(one, other) for one, other in rounds if one and other]
    if not pairs:
        return None
    each = [median(one) - median(other) for one, other in pairs]
    through, straight = (list(itertools.chain.from_iterable(values)) for values in zip(*pairs, strict=True))
    return Difference(median(through) - median(straight), min(each), max(each))
