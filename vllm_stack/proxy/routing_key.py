"""The routing key of a request: two requests with one key begin with the same prefix.

Of a conversation that is everything up to its first user message, which stays the same while
turns are added; of a bare `prompt` it is the head. Only the fields that hold these are decoded, in
C, and only a bounded part of them is hashed. What does not decode has no key: it is balanced by
load, and the worker says what is wrong with it.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from vllm_stack.proxy.rendezvous import hash_bytes
from vllm_stack.proxy.request import HELD_BODY, Request

CHATS = frozenset({b"/cohere/v2/chat", b"/v1/chat/completions", b"/v1/messages"})
COMPLETIONS = b"/v1/completions"
RESPONSES = b"/v1/responses"
WITH_PREFIX = CHATS | {COMPLETIONS, RESPONSES}

# A larger body has no key; decoding takes about 1 us per kB.
MAX_BODY = HELD_BODY
# Bytes hashed from each end of a text, beside its length: texts that begin alike (a template, a
# project's notes) mostly differ at their end.
END = 1024
# Bytes of a bare prompt: it grows by its end, so only the head stays. Shorter ones have no prefix
# worth a journey.
PROMPT_HEAD = 1024
# Messages before the first of the user, and parts of a message, that are looked at.
MAX_PIECES = 16
# Claude Code's first system block, new with every request; vLLM drops it, too
# (`entrypoints/anthropic/serving.py`).
_BILLING = b'"x-anthropic-billing-header'

# `Raw` is a piece of the body as it came: skipped by the decoder, neither copied nor unescaped.
_ABSENT = Raw()
_QUOTE, _BRACKET = b'"['


class Part(Struct, gc=False):
    """A part of a message's content: a text, or an image in OpenAI's or Anthropic's form."""

    text: Raw = _ABSENT
    image_url: Raw = _ABSENT
    source: Raw = _ABSENT


class Message(Struct, gc=False):
    """A message, or an item of `input`, which need not be one."""

    role: str = ""
    content: Raw = _ABSENT


class Body(Struct, gc=False):
    """What is decoded of a request's body; all else in it is skipped."""

    messages: list[Message] = []
    system: Raw = _ABSENT
    instructions: Raw = _ABSENT
    input: Raw = _ABSENT
    prompt: Raw = _ABSENT
    previous_response_id: str | None = None


_BODY = msgspec.json.Decoder(Body)
_MESSAGES = msgspec.json.Decoder(list[Message])
_PARTS = msgspec.json.Decoder(list[Part])
# msgspec's own errors and UnicodeDecodeError are ValueErrors; nesting without end recurses.
_UNDECODABLE = (ValueError, RecursionError)


def decode(request: Request) -> Body | None:
    """Decode the body's few fields; None if it is not here, too large or not what is expected."""
    if not request.complete or not 0 < request.body_size <= MAX_BODY:
        return None
    try:
        return _BODY.decode(request.body)
    except _UNDECODABLE:
        return None


def prefix_key(body: Body) -> int | None:
    """Give the 64-bit key of a body, None if it has nothing to make one from."""
    try:
        texts = _beginning(body)
    except _UNDECODABLE:
        return None
    return hash_bytes(b"".join(texts)) if texts else None


def header_key(request: Request, name: bytes) -> int | None:
    """Give the key of a session named by a header, None without one."""
    values = request.values(name)
    return hash_bytes(values[0]) if values and values[0] else None


def _beginning(body: Body) -> list[bytes | memoryview]:
    """Give the texts that begin this conversation, as they stand in the body, quotes and all."""
    texts: list[bytes | memoryview] = []
    if body.messages:
        if body.system:
            _add_content(texts, body.system)
        _add_messages(texts, body.messages)
    elif body.input:
        _add_content(texts, body.instructions)
        if bytes(memoryview(body.input)[:1]) == b"[":
            _add_messages(texts, _MESSAGES.decode(body.input))
        else:
            _add_content(texts, body.input)
    elif body.prompt:
        texts.append(bytes(memoryview(body.prompt)[:PROMPT_HEAD]))
    return texts


def _add_messages(texts: list[bytes | memoryview], messages: list[Message]) -> None:
    """Add everything up to the first message of the user."""
    for message in messages[:MAX_PIECES]:
        view = memoryview(message.content)
        if 0 < len(view) <= 2 * END and view[0] == _QUOTE:
            texts.append(view)  # nearly always; the rest only where it is needed, this runs for each request
        else:
            _add_content(texts, message.content)
        if message.role == "user":
            return


def _add_content(texts: list[bytes | memoryview], content: Raw) -> None:
    """Add a content's text, or the texts and images of its parts.

    A text is the same in both forms: clients turn strings into lists to mark them
    (`cache_control`), and take the marks away in the next turn.
    """
    view = memoryview(content)
    kind = view[0] if content else None
    if kind == _QUOTE:
        texts.append(view if len(view) <= 2 * END else _ends(view))
    elif kind == _BRACKET:
        parts = _PARTS.decode(content)
        for part in parts[: MAX_PIECES // 2] + parts[MAX_PIECES // 2 :][-MAX_PIECES // 2 :]:
            for field in (part.text, part.image_url, part.source):
                text = _ends(memoryview(field))
                if text and not text.startswith(_BILLING):
                    texts.append(text)


def _ends(text: memoryview) -> bytes:
    """Give a text that is not long, or the two ends of one that is and its length."""
    if len(text) <= 2 * END:
        return bytes(text)
    return b"".join((text[:END], b"%d" % len(text), text[-END:]))
