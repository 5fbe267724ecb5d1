"""What went through the proxy since its start, as its admin door tells it (`GET /traffic`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

from vllm_stack.proxy.routes import HEALTH, LIVENESS

# They are asked all the time, by load balancers and by people, and say nothing of the traffic.
_CHECKS = frozenset(path.decode() for path in (*HEALTH, LIVENESS))
_FIRST_ERROR = 500


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many took how long: `counts` by upper bound in seconds, the last one above all `bounds`."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def quantile(self, share: float) -> float | None:
        """Give the seconds within which this share of all was done, None where there were none.

        Within a bucket they count as evenly spread, as Prometheus has it; what is above all bounds
        counts as the highest.
        """
        rank = share * sum(self.counts)
        if not rank:
            return None
        lower, below = 0.0, 0
        for upper, count, reached in zip(self.bounds, self.counts, accumulate(self.counts), strict=False):
            if reached >= rank:
                return lower + (upper - lower) * (rank - below) / count
            lower, below = upper, reached
        return lower

    def since(self, before: Self) -> Histogram:
        """Give what came after `before`."""
        return Histogram(self.bounds, tuple(a - b for a, b in zip(self.counts, before.counts, strict=True)))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that ended until the moment `at` (`time.monotonic`), health checks left out.

    `errors` were answered with 500 or above. `first_byte` is the time from a request's head to the first
    byte of a server's answer.
    """

    at: float
    requests: int
    errors: int
    first_byte: Histogram

    def is_before(self, other: Self) -> bool:
        """Whether this can be an earlier look at the same proxy: one that was started anew counts from 0."""
        mine, its = self.first_byte, other.first_byte
        return mine.bounds == its.bounds and all(a <= b for a, b in zip(mine.counts, its.counts, strict=True))


def read_traffic(page: Mapping[str, Any], at: float) -> Traffic | None:
    """Read what `GET /traffic` gave at the moment `at`; None for anything else."""
    try:
        counts = [(one["code"], one["number"]) for one in page["requests"] if one["route"] not in _CHECKS]
        bounds: Sequence[float] = page["first_byte_bounds"]
        by_server = [server["first_byte"]["counts"] for server in page["servers"] if not server["itself"]]
        summed = [sum(column) for column in zip(*by_server, strict=True)] or [0] * (len(bounds) + 1)
        return Traffic(
            at=at,
            requests=sum(number for _, number in counts),
            errors=sum(number for code, number in counts if code >= _FIRST_ERROR),
            first_byte=Histogram(tuple(bounds), tuple(summed)),
        )
    except (KeyError, TypeError, ValueError):
        return None
