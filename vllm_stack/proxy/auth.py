"""The client's key: found in the headers, looked up by its hash, never passed on."""

from __future__ import annotations

from vllm_stack.keys.api_key import hash_key
from vllm_stack.proxy.caller import Caller
from vllm_stack.proxy.keyring import Keyring
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_head import RequestHead


def check_key(head: RequestHead, keys: Keyring) -> Caller | None:
    """Tell whose key a request carries, None while any key is good; raises `Refusal` 401 for any other.

    What was presented is hashed first, as vLLM does (`middleware/authenticate.py`), so bytes of any kind
    and length compare, and time tells nothing about a key.
    """
    if not keys.required:
        return None
    if head.key_digest is None:
        key = _presented_key(head)
        head.key_digest = hash_key(key) if key else b""
    caller = keys.find(head.key_digest)
    if caller is None:
        raise Refusal(
            401,
            "invalid_api_key",
            "Incorrect API key provided"
            if head.key_digest
            else "No API key provided: send 'Authorization: Bearer KEY'",
            headers=(("www-authenticate", "Bearer"),),
        )
    return caller


def _presented_key(head: RequestHead) -> bytes | None:
    """Take the Bearer token, or Anthropic's `x-api-key`; two of a kind count as none."""
    tokens = head.values(b"authorization")
    if len(tokens) == 1:
        scheme, _, token = tokens[0].strip().partition(b" ")
        return token.strip() if scheme.lower() == b"bearer" else None
    keys = head.values(b"x-api-key")
    return keys[0].strip() if not tokens and len(keys) == 1 else None
