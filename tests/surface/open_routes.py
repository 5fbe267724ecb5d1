"""What of vLLM a client with a key can reach: it runs models, lists them, and asks for what was stored.

This is docs/security.md once more, and not the proxy's own list: whatever else vLLM says it has is to be
shut, and so is what a later vLLM adds until somebody has decided about it here.
"""

from __future__ import annotations

# They name the model that they are for.
NAMING = (
    "POST /classify",
    "POST /detokenize",
    "POST /generative_scoring",
    "POST /inference/v1/generate",
    "POST /pooling",
    "POST /rerank",
    "POST /score",
    "POST /tokenize",
    "POST /v1/audio/transcriptions",
    "POST /v1/audio/translations",
    "POST /v1/chat/completions",
    "POST /v1/chat/completions/batch",
    "POST /v1/chat/completions/derender",
    "POST /v1/chat/completions/render",
    "POST /v1/completions",
    "POST /v1/completions/derender",
    "POST /v1/completions/render",
    "POST /v1/embeddings",
    "POST /v1/messages",
    "POST /v1/messages/count_tokens",
    "POST /v1/messages/render",
    "POST /v1/rerank",
    "POST /v1/responses",
    "POST /v1/responses/render",
    "POST /v1/score",
    "POST /v1/systemone",
    "POST /v2/embed",
    "POST /v2/rerank",
)
# The proxy's own where there are several models.
LIST = "GET /v1/models"
OPEN = (
    *NAMING,
    LIST,
    "GET /v1/responses/{response_id}",
    "GET /version",
    "POST /v1/responses/{response_id}/cancel",
)
# Answered by the proxy itself.
HEALTH = ("GET /health", "GET /ping", "POST /ping")
