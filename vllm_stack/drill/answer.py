"""What one answer of the door tells of itself: whole, cut with word of it, or cut without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Ending(Enum):
    """How one request of the drill's own traffic ended."""

    WHOLE = "whole"
    # Refused, or its connection broke before a stream began or in the middle of another answer.
    FAILED = "failed"
    # A stream with an error event: a client raises.
    CUT = "cut"
    # A stream whose connection broke without one: a client raises too, but the stack had not said why.
    BROKEN = "broken"
    # It looks whole and is not: no client notices. The worst there is.
    SILENT = "cut silently"
    # The drill itself ended it.
    UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request: when it began, had its first byte and ended (seconds, CLOCK_MONOTONIC), and how.

    `settled` is when the first byte of its body came: from then on it is certain that the answer
    comes from one worker and stays there. `port` is our end of the connection, None if there was none.
    """

    begun: float
    settled: float | None
    ended: float
    streamed: bool
    ending: Ending
    status: int | None = None
    detail: str = ""
    port: int | None = None

    @property
    def is_lost(self) -> bool:
        """The client did not get what it had asked for."""
        return self.ending not in (Ending.WHOLE, Ending.UNFINISHED)


class EventReader:
    """Takes server-sent events apart, in whatever pieces they come (HTML standard, 9.2.6)."""

    def __init__(self) -> None:
        self._text = b""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """Give the data of every event that ends in `piece`."""
        *lines, self._text = (self._text + piece).split(b"\n")
        for raw in lines:
            line = raw.removesuffix(b"\r").decode("utf-8", "replace")
            name, _, value = line.partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data.clear()


class StreamReader:
    """Follows the stream of a completion and says at its end how it ended."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._error: str | None = None
        self._done = False
        self._aborted = False

    def feed(self, piece: bytes) -> None:
        for data in self._events.feed(piece):
            self._done = self._done or data.strip() == "[DONE]"
            value = _object(data)
            if "error" in value and self._error is None:
                self._error = _message(value)
            self._aborted = self._aborted or is_aborted(value)

    def ending(self, broken: str | None) -> tuple[Ending, str]:
        """Judge the stream, whose connection is `broken` in these words, or ended properly (None).

        vLLM sends `[DONE]` behind an error event: the error is what counts.
        """
        if self._error is not None:
            return Ending.CUT, self._error
        if self._done:
            if self._aborted:
                return Ending.SILENT, 'finish_reason "abort", and then [DONE]'
            return Ending.WHOLE, ""
        if broken is not None:
            return Ending.BROKEN, broken
        return Ending.SILENT, "the stream ended properly, without [DONE] and without an error"


def judge_answer(status: int, body: bytes) -> tuple[Ending, str]:
    """Judge an answer that came in one piece."""
    value = _object(body.decode("utf-8", "replace"))
    if status != 200:
        return Ending.FAILED, f"{status} {_message(value)}".rstrip()
    if is_aborted(value):
        return Ending.SILENT, 'an answer with finish_reason "abort"'
    if "choices" not in value:
        return Ending.FAILED, "200 with an answer that is no completion"
    return Ending.WHOLE, ""


def is_aborted(value: dict[str, Any]) -> bool:
    """Tell whether a completion says that nobody made it to its end."""
    choices = value.get("choices")
    return isinstance(choices, list) and any(
        isinstance(choice, dict) and choice.get("finish_reason") == "abort" for choice in choices
    )


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _message(value: dict[str, Any]) -> str:
    error = value.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "")[:120]
