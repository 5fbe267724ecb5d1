"""The looks at a stack that were taken so far, newest last, and what they tell together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllm_stack.status.figures import Figures
from vllm_stack.status.picture import Pace
from vllm_stack.status.rates import token_rates, tokens_out, traffic_rates
from vllm_stack.status.traffic import Traffic

# Seconds over which times to the first byte are told, and looks that the line of bars has room for.
_MINUTE = 60.0
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Look:
    """What counts up, at one moment: every worker's figures, None where there are none, and the proxy's."""

    figures: Mapping[str, Figures | None]
    traffic: Traffic | None


def compare(before: Look, after: Look) -> Pace:
    """Give what happens in a second."""
    tokens = {name: token_rates(before.figures.get(name), last) for name, last in after.figures.items()}
    return Pace(tokens, traffic_rates(before.traffic, after.traffic))


class Looks:
    """The looks of the last minute."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque()

    def __len__(self) -> int:
        return len(self._looks)

    def add(self, look: Look) -> None:
        """Take one more, and forget what nobody needs any longer."""
        self._looks.append(look)
        while len(self._looks) > _SHOWN + 1 and self._is_old(self._looks[1]):
            self._looks.popleft()

    def pace(self) -> Pace:
        """Compare the last two; times to the first byte are over the last minute, or what there is of it."""
        if len(self._looks) < 2:
            return Pace()
        pace = compare(self._looks[-2], self._looks[-1])
        oldest, newest = self._oldest_traffic(), self._looks[-1].traffic
        if oldest is None or newest is None or oldest is newest:
            return pace
        first_byte = newest.first_byte.since(oldest.first_byte)
        return replace(pace, first_byte=first_byte, first_byte_seconds=newest.at - oldest.at)

    def history(self) -> dict[str, list[float | None]]:
        """Give what came out of each worker a second, from look to look."""
        shown = list(self._looks)[-_SHOWN - 1 :]
        names = self._looks[-1].figures if self._looks else ()
        return {name: tokens_out([look.figures.get(name) for look in shown]) for name in names}

    def _is_old(self, look: Look) -> bool:
        newest = self._looks[-1].traffic
        return newest is None or look.traffic is None or newest.at - look.traffic.at > _MINUTE

    def _oldest_traffic(self) -> Traffic | None:
        """Give the oldest of the proxy that runs now: one that was started anew counts from 0."""
        newest = self._looks[-1].traffic
        oldest = newest
        for look in reversed(self._looks):
            if newest is None or look.traffic is None or newest.at - look.traffic.at > _MINUTE:
                break
            if oldest is not None and not look.traffic.is_before(oldest):
                break
            oldest = look.traffic
        return oldest
