"""Reading one answer off a connection, and telling whether it is the right one."""

from __future__ import annotations

import json
import re

from benchmarks.dialect import COMPLETION_TEXT, answer_text, dechunk, sse_body

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked")
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close")


class Answer:
    """The bytes of one answer as they come.

    What is done for every packet is kept small, because it shares a core with other parts of the
    load; the framing is read when the answer is over.
    """

    __slots__ = ("_chunked", "_head", "_parts", "_size", "_tail", "_whole_size", "closes")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._head = 0
        self._size = 0
        self._tail = b""
        self._whole_size: int | None = None
        self._chunked = False
        self.closes = False

    def feed(self, data: bytes) -> bool:
        """Take what came; true when the answer is whole."""
        self._parts.append(data)
        self._size += len(data)
        if self._head:
            self._tail = (self._tail + data)[-5:]
        elif not self._read_head():
            return False
        if self._chunked:
            return self._tail == b"0\r\n\r\n"
        return self._whole_size is not None and self._size >= self._whole_size

    @property
    def status(self) -> int:
        return int(self._raw()[9:12] or 0)

    @property
    def body(self) -> bytes:
        """Give the body; what is not whole gives what there is, framing included."""
        raw = self._raw()
        if self._chunked:
            whole = dechunk(raw, self._head)
            return raw[self._head :] if whole is None else whole[0]
        return raw[self._head :]

    def _raw(self) -> bytes:
        if len(self._parts) > 1:
            self._parts = [b"".join(self._parts)]
        return self._parts[0] if self._parts else b""

    def _read_head(self) -> bool:
        raw = self._raw()
        end = raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._head = end + 4
        head = raw[: end + 2].lower()
        length = _LENGTH.search(head)
        self._chunked = _CHUNKED.search(head) is not None
        self._whole_size = self._head + int(length[1]) if length else None
        # Of the body alone: a head may well end in the bytes that end a body.
        self._tail = raw[self._head :][-5:]
        self.closes = _CLOSE.search(head) is not None
        return True


def fault_of_stream(answer: Answer, events: int) -> str | None:
    """Say what is wrong with a streamed answer; None if it is right.

    A proxy may spell the JSON anew, but every event has to be there, in order, and `[DONE]`.
    """
    if answer.status != 200:
        return f"status {answer.status}: {answer.body[:200]!r}"
    body = answer.body
    if body == sse_body(events):
        return None
    said = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    if not said or said[-1] != b"[DONE]":
        return f"no [DONE] after {len(said)} events: ...{body[-100:]!r}"
    try:
        choices = [json.loads(event)["choices"] for event in said[:-1]]
        text = "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)
    except (ValueError, KeyError, IndexError) as error:
        return f"an event that is none: {error!r}"
    return None if text == answer_text(events) else f"the text is another one: ...{text[-100:]!r}"


def fault_of_completion(answer: Answer) -> str | None:
    """Say what is wrong with an answer that is not streamed; None if it is right."""
    if answer.status != 200:
        return f"status {answer.status}: {answer.body[:200]!r}"
    try:
        text = json.loads(answer.body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError) as error:
        return f"not a completion: {error!r}"
    return None if text == COMPLETION_TEXT else f"the text is another one: {text[:100]!r}"
