"""Which paths go to a worker, which we answer ourselves, which stay shut.

The control and development routes of vLLM 0.32 answer 404 unless the operator opens them by name:
they put a server to sleep, change its weights, or show more of it than a client should see. Most
of them are not guarded by vLLM's own key (`entrypoints/serve/middleware/authenticate.py`).
"""

from __future__ import annotations

HEALTH = frozenset({b"/health", b"/healthz", b"/readyz"})
LIVENESS = b"/livez"

# Exact paths, and everything below them.
CLOSED = frozenset(
    {
        b"/abort_requests",
        b"/collective_rpc",
        b"/docs",
        b"/fault_tolerance",
        b"/finish_weight_update",
        b"/get_world_size",
        b"/init_weight_transfer_engine",
        b"/invocations",
        b"/is_paused",
        b"/is_scaling_elastic_ep",
        b"/is_sleeping",
        b"/kv_event_sources",
        b"/load",
        b"/metrics",
        b"/openapi.json",
        b"/pause",
        b"/ping",
        b"/redoc",
        b"/release_kv_cache_memory",
        b"/reset_encoder_cache",
        b"/reset_mm_cache",
        b"/reset_prefix_cache",
        b"/resume",
        b"/scale_elastic_ep",
        b"/server_info",
        b"/sleep",
        b"/start_profile",
        b"/start_weight_update",
        b"/stop_profile",
        b"/update_weights",
        b"/v1/load_lora_adapter",
        b"/v1/unload_lora_adapter",
        b"/wake_up",
    }
)

# POST routes that run the model and change nothing: safe to send once more to another worker.
INFERENCE = frozenset(
    {
        b"/classify",
        b"/cohere/v2/chat",
        b"/generative_scoring",
        b"/inference/v1/generate",
        b"/pooling",
        b"/rerank",
        b"/score",
        b"/v1/audio/transcriptions",
        b"/v1/audio/translations",
        b"/v1/chat/completions",
        b"/v1/chat/completions/batch",
        b"/v1/completions",
        b"/v1/embeddings",
        b"/v1/messages",
        b"/v1/messages/count_tokens",
        b"/v1/rerank",
        b"/v1/score",
        b"/v2/embed",
        b"/v2/rerank",
        b"/tokenize",
        b"/detokenize",
    }
)


def is_closed(path: bytes, opened: frozenset[bytes]) -> bool:
    """Tell whether a decoded path is one of the closed routes, or lies below one."""
    bare = path.rstrip(b"/")
    while bare:
        if bare in CLOSED and bare not in opened:
            return True
        bare = bare.rpartition(b"/")[0]
    return False


def is_inference(method: bytes, path: bytes) -> bool:
    """Tell whether a broken request may be sent once more to another worker."""
    return method == b"POST" and path in INFERENCE
