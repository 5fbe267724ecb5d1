"""What is asked for: streamed completions of a fixed length, in OpenAI's words."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Asking:
    """The requests of a load; `fixed_length` asks for `ignore_eos`, which vLLM knows and others may not."""

    model: str
    max_tokens: int
    path: str = CHAT
    fixed_length: bool = True

    def body(self, prompt: str) -> bytes:
        if self.path == CHAT:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        else:
            asked = {"prompt": prompt}
        if self.fixed_length:
            asked["ignore_eos"] = True
        told = {"model": self.model, "max_tokens": self.max_tokens, "stream": True}
        return msgspec.json.encode({**told, "stream_options": {"include_usage": True}, **asked})

    def shortest(self) -> Asking:
        """The same for one token."""
        return replace(self, max_tokens=1)

    def variants(self) -> tuple[Asking, ...]:
        """What to try in turn with a server that refuses one of them."""
        return tuple(
            replace(self, path=path, fixed_length=fixed)
            for path in (CHAT, COMPLETIONS)
            for fixed in (True, False)
        )
