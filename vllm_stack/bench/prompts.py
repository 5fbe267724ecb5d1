"""Prompts of a given length, each of them new, so that no server has its beginning in a cache."""

from __future__ import annotations

import itertools
import random
import secrets
from dataclasses import dataclass

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue "
    "side kind head house service friend father power hour game line end member law car city name team"
)
_WORDS = _TEXT.split()
# With --shared-prefix: so much of a prompt is the same in all.
_SHARED = 0.9


@dataclass(frozen=True, slots=True)
class Length:
    """How many tokens the server counts: so many for each word, and some for what stands around them."""

    per_word: float = 1.0
    around: float = 0.0

    @classmethod
    def measured(cls, short: tuple[int, int], long: tuple[int, int]) -> Length:
        """Learn it from two prompts, each given by its words and its tokens."""
        per_word = (long[1] - short[1]) / (long[0] - short[0])
        return cls(per_word, short[1] - short[0] * per_word) if per_word > 0 else cls()

    def words(self, tokens: int) -> int:
        """Give how many words make about so many tokens; one at least."""
        return max(1, round((tokens - self.around) / self.per_word))


class Prompts:
    """Makes prompts; what two of them have in common, they have only if `shared` says so."""

    def __init__(self, shared: bool = False, seed: str | None = None) -> None:
        self._run = seed or secrets.token_hex(4)
        self._numbers = itertools.count()
        self._shared = shared

    def make(self, words: int) -> str:
        """Give the next prompt, of so many words."""
        number = next(self._numbers)
        common = round(words * _SHARED) if self._shared else 0
        own = [f"{number}{self._run}", *_some(words, f"{self._run} {number}")]
        return " ".join([*_some(common, "shared"), *own][:words])


def _some(count: int, seed: str) -> list[str]:
    return random.Random(seed).choices(_WORDS, k=count)  # noqa: S311 - nobody is to be surprised
