"""A burst of load: so many clients, each of which asks again as soon as it has its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from vllm_stack.bench.sample import Sample

# Seconds a client waits after a failure: one that is refused at once must not become a flood.
_PAUSE = 0.25


@dataclass(frozen=True, slots=True)
class Amount:
    """How much is asked: a number of requests, or, without one, what begins within so many seconds."""

    requests: int | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class Burst:
    """What came of it: the requests that ended, within how long, and what CPU time that cost us."""

    way: str
    concurrency: int
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    async def run(
        self, ask: Callable[[], Awaitable[Sample]], amount: Amount, noted: Callable[[], object]
    ) -> None:
        """Ask with `concurrency` clients; `noted` is called for every request that ends.

        What has ended is kept also when this is cancelled.
        """
        begun, used = time.perf_counter(), time.process_time()
        begins = _begins(amount)

        async def client() -> None:
            while begins():
                sample = await ask()
                self.samples.append(sample)
                noted()
                if not sample.is_whole:
                    await asyncio.sleep(_PAUSE)

        try:
            async with asyncio.TaskGroup() as clients:
                for _ in range(self.concurrency):
                    clients.create_task(client())
        finally:
            self.seconds = time.perf_counter() - begun
            self.cpu_seconds = time.process_time() - used


def _begins(amount: Amount) -> Callable[[], bool]:
    """Make the question whether one more request is to begin."""
    if amount.requests is None:
        end = time.perf_counter() + amount.seconds
        return lambda: time.perf_counter() < end
    left = iter(range(amount.requests))
    return lambda: next(left, None) is not None
