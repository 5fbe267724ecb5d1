"""The client's key: found in the headers, compared in constant time, never passed on."""

from __future__ import annotations

import hmac

from vllm_stack.keys import hash_key
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_head import RequestHead


def check_key(head: RequestHead, accepted: tuple[bytes, ...]) -> None:
    """Raise `Refusal` 401 unless the request carries one of the accepted keys; none means any.

    Both sides are hashed first, as vLLM does (`middleware/authenticate.py`): any bytes of any
    length compare, and every key is compared, so time tells nothing about them.
    """
    if not accepted:
        return
    if head.key_digest is None:
        key = _presented_key(head)
        head.key_digest = hash_key(key) if key else b""
    matches = 0
    for known in accepted:
        matches |= hmac.compare_digest(head.key_digest, known)
    if not matches:
        raise Refusal(
            401,
            "invalid_api_key",
            "Incorrect API key provided"
            if head.key_digest
            else "No API key provided: send 'Authorization: Bearer KEY'",
            headers=(("www-authenticate", "Bearer"),),
        )


def _presented_key(head: RequestHead) -> bytes | None:
    """Take the Bearer token, or Anthropic's `x-api-key`; two of a kind count as none."""
    tokens = head.values(b"authorization")
    if len(tokens) == 1:
        scheme, _, token = tokens[0].strip().partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else None
    keys = head.values(b"x-api-key")
    return keys[0].strip() if not tokens and len(keys) == 1 else None
