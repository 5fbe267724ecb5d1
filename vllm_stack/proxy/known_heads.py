"""Heads that were parsed before, found again by their bytes.

On a kept connection one head is like the last but for its Content-Length, so parsing it anew, field
by field, is most of what a short request costs. A head counts as known when it is the same byte
for byte with the digits of its length cut out: what the strict parser made of the first one then
holds for it too. Heads without a length the parser accepted are never learnt, nor long ones.
"""

from __future__ import annotations

from typing import TypeVar

_MAX_HEAD = 4096
_MAX_DIGITS = 15
# The spellings that clients and servers use; a head with any other is parsed in full.
_LENGTHS = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")

Head = TypeVar("Head")


def cut(data: bytes) -> tuple[bytes, int, int | None] | None:
    """Split the length off the head that `data` begins with; None where it cannot be done simply.

    Gives the head without the digits of its length, the size of the whole head, and the length,
    None where the head names none.
    """
    end = data.find(b"\r\n\r\n", 0, _MAX_HEAD)
    # Before a request parsers pass over line ends (RFC 9112 section 2.2): what ends at these is no head, and
    # the next blank lines of anybody would be taken for the one that was parsed behind them.
    if end < 0 or data[0] in b"\r\n":
        return None
    for name in _LENGTHS:
        at = data.find(name, 0, end)
        if at >= 0:
            start = at + len(name)
            stop = data.find(b"\r\n", start, end + 2)
            digits = data[start:stop]
            if len(digits) > _MAX_DIGITS or not digits.isdigit():
                return None
            return data[:start] + data[stop:end], end + 4, int(digits)
    return data[:end], end + 4, None


class KnownHeads(dict[bytes, Head]):
    """A bounded memory of heads, by what `cut` left of them; when it is full the oldest are forgotten."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def learn(self, key: bytes, head: Head) -> None:
        """Remember what the parser made of the head that `key` was cut from."""
        if len(self) >= self._most:
            del self[next(iter(self))]
        self[key] = head
