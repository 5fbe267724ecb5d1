"""Which paths go to a worker, which we answer ourselves, which stay shut.

The control and development routes of vLLM 0.32 answer 404 unless the operator opens them by name:
they put a server to sleep, change its weights, end other people's requests, or show more of it
than a client should see. Most of them are not guarded by vLLM's own key
(`entrypoints/serve/middleware/authenticate.py`). Unknown paths pass: a worker answers 404 itself.
"""

from __future__ import annotations

from enum import Enum, auto

# Answered by ourselves, without a key and with any method (SageMaker sends POST /ping).
HEALTH = frozenset({b"/health", b"/healthz", b"/ping", b"/readyz"})
LIVENESS = b"/livez"
# Answered by ourselves where there are several models, because no server knows them all.
MODELS = b"/v1/models"
# The one WebSocket of vLLM (`entrypoints/speech_to_text/realtime/api_router.py`).
REALTIME = b"/v1/realtime"

# Each with everything below it.
CLOSED = frozenset(
    {
        b"/abort_requests",
        b"/adapters",
        b"/collective_rpc",
        b"/docs",
        b"/fault_tolerance",
        b"/finish_weight_update",
        b"/get_world_size",
        b"/inference/v1/abort_requests",
        b"/init_weight_transfer_engine",
        b"/invocations",
        b"/is_paused",
        b"/is_scaling_elastic_ep",
        b"/is_sleeping",
        b"/kv_event_sources",
        b"/load",
        b"/openapi.json",
        b"/pause",
        b"/redoc",
        b"/release_kv_cache_memory",
        b"/reset_encoder_cache",
        b"/reset_mm_cache",
        b"/reset_prefix_cache",
        b"/resume",
        b"/scale_elastic_ep",
        b"/server_info",
        b"/shutdown_weight_transfer_engine",
        b"/sleep",
        b"/start_draft_weight_update",
        b"/start_profile",
        b"/start_weight_update",
        b"/static",
        b"/stop_profile",
        b"/tokenizer_info",
        b"/update_weight_version",
        b"/update_weights",
        b"/v1/load_lora_adapter",
        b"/v1/unload_lora_adapter",
        b"/wake_up",
        b"/weight_checker",
        b"/weight_info",
    }
)
# vLLM mounts its metrics at every path that merely begins so (`serve/instrumentator/metrics.py`).
_METRICS = b"/metrics"

# POST routes that run the model and keep nothing: safe to send once more to another worker.
INFERENCE = frozenset(
    {
        b"/classify",
        b"/cohere/v2/chat",
        b"/cohere/v2/chat/render",
        b"/detokenize",
        b"/generative_scoring",
        b"/inference/v1/generate",
        b"/pooling",
        b"/rerank",
        b"/score",
        b"/tokenize",
        b"/v1/audio/transcriptions",
        b"/v1/audio/translations",
        b"/v1/chat/completions",
        b"/v1/chat/completions/batch",
        b"/v1/chat/completions/derender",
        b"/v1/chat/completions/render",
        b"/v1/completions",
        b"/v1/completions/derender",
        b"/v1/completions/render",
        b"/v1/embeddings",
        b"/v1/messages",
        b"/v1/messages/count_tokens",
        b"/v1/messages/render",
        b"/v1/rerank",
        b"/v1/responses",
        b"/v1/responses/render",
        b"/v1/score",
        b"/v1/systemone",
        b"/v2/embed",
        b"/v2/rerank",
    }
)


def lists_models(method: bytes, path: bytes) -> bool:
    """Tell whether a request asks which models there are."""
    return path == MODELS and method in (b"GET", b"HEAD")


def is_closed(path: bytes, opened: frozenset[bytes]) -> bool:
    """Tell whether a decoded path is one of the closed routes, or lies below one.

    A trailing slash changes nothing: the server redirects it to the bare path.
    """
    if path.startswith(_METRICS):
        return _METRICS not in opened
    bare = path.rstrip(b"/")
    while bare:
        if bare in CLOSED:
            return bare not in opened
        bare = bare.rpartition(b"/")[0]
    return False


class Route(Enum):
    """What a request asks for, as far as the proxy cares."""

    HEALTH = auto()
    LIVENESS = auto()
    CLOSED = auto()
    # It may be sent once more to another worker when the first one breaks.
    INFERENCE = auto()
    # A WebSocket on `REALTIME`; the parser tells, because HTTP ends with its head.
    TUNNEL = auto()
    # The list of several models.
    MODELS = auto()
    OTHER = auto()


def route_of(method: bytes, path: bytes, opened: frozenset[bytes]) -> Route:
    """Tell what a request asks for by its method and its decoded path."""
    if path in HEALTH:
        return Route.HEALTH
    if path == LIVENESS:
        return Route.LIVENESS
    if is_closed(path, opened):
        return Route.CLOSED
    return Route.INFERENCE if method == b"POST" and path in INFERENCE else Route.OTHER
