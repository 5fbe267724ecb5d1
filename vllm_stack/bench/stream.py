"""The stream of one answer, read with a clock: when its first event came, and each one with text."""

from __future__ import annotations

import msgspec

from vllm_stack.drill.answer import EventReader


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    text: str | None = None
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        delta = self.delta
        return bool(
            delta.content or self.text or delta.reasoning or delta.reasoning_content or delta.tool_calls
        )


class Usage(msgspec.Struct):
    """The tokens of a request as its server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = ""


class _Event(msgspec.Struct):
    choices: list[_Choice] = []  # msgspec copies it
    usage: Usage | None = None
    error: _Error | str | None = None


_DECODER = msgspec.json.Decoder(_Event)


class TimedStream:
    """Follows a streamed completion, fed with its bytes and the time they came at (seconds, any clock)."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._last_text: float | None = None
        self._error: str | None = None
        self._done = False
        self._aborted = False
        self.first: float | None = None
        self.last: float | None = None
        self.gaps: list[float] = []
        self.usage: Usage | None = None

    def feed(self, piece: bytes, now: float) -> None:
        for data in self._events.feed(piece):
            if data == "[DONE]":
                self._done = True
                continue
            try:
                self._take(_DECODER.decode(data), now)
            except (ValueError, RecursionError):
                self._error = self._error or "an event that is none of a completion"

    def _take(self, event: _Event, now: float) -> None:
        self.usage = event.usage or self.usage
        if event.error is not None and self._error is None:
            self._error = event.error if isinstance(event.error, str) else event.error.message
        if not event.choices:
            return
        # vLLM sends the event that names the role with its first token, and its own benchmark counts it.
        self.first = now if self.first is None else self.first
        self.last = now
        self._aborted = self._aborted or any(one.finish_reason == "abort" for one in event.choices)
        if any(one.says_something for one in event.choices):
            if self._last_text is not None:
                self.gaps.append(now - self._last_text)
            self._last_text = now

    def fault(self, broken: tuple[str, str] | None = None) -> tuple[str, str] | None:
        """Say what is wrong with the answer now that it is over: the kind, and more of it.

        Its connection was `broken` in these words, or ended in order. An error that the stream itself
        tells is the reason, and what came behind the end is no matter.
        """
        if self._error is not None:
            return "error in the stream", self._error
        if self._aborted:
            return "aborted", 'finish_reason "abort"'
        if not self._done:
            return broken or ("no [DONE]", "the answer ended without it")
        return None if self.first is not None else ("empty", "a stream without any token")
