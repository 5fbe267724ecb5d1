"""Who calls: the holder of a key by its name, what it may have, and the count of what it has."""

from __future__ import annotations

from typing import NoReturn

from vllm_stack.openai import RATE_LIMIT
from vllm_stack.proxy.key_usage import IN_FLIGHT, LIMITED, REQUESTS, Denial, KeyRow
from vllm_stack.proxy.refusal import Refusal


class Caller:
    """A key that holds now. Of one name there are several while it is rotated; they are counted together."""

    __slots__ = (
        "_cells",
        "_in_flight",
        "_limited",
        "_requests",
        "_row",
        "concurrent",
        "name",
        "per_minute",
        "slot",
    )

    def __init__(
        self, row: KeyRow, name: str, slot: int, concurrent: int | None = None, per_minute: int | None = None
    ) -> None:
        self.name = name
        self.slot = slot
        self.concurrent = concurrent
        self.per_minute = per_minute
        self._row = row
        self._cells = row.cells
        place = row.place(slot)
        self._requests = place + REQUESTS
        self._in_flight = place + IN_FLIGHT
        self._limited = concurrent is not None or per_minute is not None

    def enter(self) -> None:
        """Take one more request in flight; raises `Refusal` 429 if that is one too many."""
        if self._limited:
            denial = self._row.allow(self.slot, self.concurrent, self.per_minute)
            if denial is not None:
                self._refuse(denial)
        else:
            self._cells[self._in_flight] += 1
        self._cells[self._requests] += 1

    def leave(self) -> None:
        """Note that a request has ended, however it ended."""
        self._cells[self._in_flight] -= 1

    def _refuse(self, denial: Denial) -> NoReturn:
        self._cells[self._row.place(self.slot) + LIMITED] += 1
        headers = [("retry-after", str(denial.wait))]
        if denial.concurrent:
            limit = f"{self.concurrent} requests at a time"
        else:
            limit = f"{self.per_minute} requests per minute"
            headers += [
                ("x-ratelimit-limit-requests", str(self.per_minute)),
                ("x-ratelimit-remaining-requests", "0"),
                ("x-ratelimit-reset-requests", f"{denial.wait}s"),
            ]
        raise Refusal(
            429,
            "rate_limit_exceeded",
            f"Rate limit reached for the key {self.name}: {limit}. Try again in {denial.wait} s",
            kind=RATE_LIMIT,
            headers=tuple(headers),
        )
