"""One request of the load, and what it had to wait for. All times are seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One request that has ended: when, relative to its beginning, its answer came.

    `first` is the first event of the answer, `last` the last one; `gaps` lie between the events with
    text. Tokens are those that the server counted, None if it did not tell. `error` is a kind of
    failure in a few words, None for a whole answer, and `detail` what more was said of it.
    """

    server: str
    first: float | None = None
    last: float | None = None
    gaps: tuple[float, ...] = ()
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    detail: str = ""

    @property
    def is_whole(self) -> bool:
        return self.error is None

    @property
    def per_token(self) -> float | None:
        """The mean time between two tokens; None for an answer of one event or one token."""
        if self.first is None or self.last is None or not self.gaps:
            return None
        # A gap can be of several tokens: the server's count is the better one.
        between = len(self.gaps) if self.output_tokens is None else self.output_tokens - 1
        return (self.last - self.first) / between if between > 0 else None


@dataclass(frozen=True, slots=True)
class Objective:
    """What a good request keeps to, in seconds; None asks for nothing."""

    first: float | None = None
    per_token: float | None = None

    @property
    def asks(self) -> bool:
        return self.first is not None or self.per_token is not None

    def is_met(self, sample: Sample) -> bool:
        """Whether a request is a good one; an answer of one token has no time between tokens to keep."""
        if not sample.is_whole or sample.first is None:
            return False
        in_time = self.first is None or sample.first <= self.first
        return in_time and (self.per_token is None or (sample.per_token or 0.0) <= self.per_token)
