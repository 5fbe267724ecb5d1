"""What the proxy itself answers at the public door, as docs/behaviour.md and docs/security.md promise it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.surface.openapi import (
    COUNT,
    METHODS,
    TEXT,
    WITH_BODY,
    Schema,
    answer,
    document,
    each,
    in_query,
    maybe,
    one_of,
    operation,
    said,
    shape,
)

# With any method, because SageMaker sends POST /ping.
HEALTH = ("/health", "/healthz", "/ping", "/readyz")
LIVENESS = "/livez"
MODELS = "/v1/models"
# By the status of a refusal: its codes. What is refused otherwise is no HTTP, and tested in `tests.wire`.
CODES = {
    400: ("bad_request", "invalid_form", "invalid_json", "model_required"),
    401: ("invalid_api_key",),
    404: ("model_not_found", "not_found"),
    405: ("method_not_allowed",),
    414: ("uri_too_long",),
}


def refusal(*statuses: int) -> Schema:
    """OpenAI's error, with a code that one of these statuses can have."""
    codes = [code for status in statuses for code in CODES[status]]
    error = shape(
        message={"type": "string", "minLength": 1},
        type=said("invalid_request_error"),
        param=maybe(TEXT),
        code=one_of(codes),
    )
    return shape(error=error)


def public_document(models: Sequence[str] = ()) -> dict[str, Any]:
    """Describe the door of one model; or of several, by all of their names."""
    unknown = {404: answer(refusal(404))} if models else {}
    # An empty name is none: it asks for all models.
    asked = [in_query("model", one_of(["", *models]))] if models else []
    ready = {200: answer(shape(status=said("ready"))), **unknown}
    alive = {200: answer(shape(status=said("alive")))}
    paths: dict[str, dict[str, Any]] = {
        path: {method: operation(ready, asked, method in WITH_BODY) for method in METHODS} for path in HEALTH
    }
    paths[LIVENESS] = {method: operation(alive, body=method in WITH_BODY) for method in METHODS}
    if models:
        paths[MODELS] = {"get": operation({200: answer(_model_list(models)), 401: answer(refusal(401))})}
    return document("The proxy's own routes", paths)


def _model_list(names: Sequence[str]) -> Schema:
    """OpenAI's list; a server may say more of a model than is said without it."""
    entry = {
        "type": "object",
        "properties": {
            "id": one_of(names),
            "object": said("model"),
            "created": COUNT,
            "owned_by": TEXT,
            "root": TEXT,
            "parent": maybe(TEXT),
        },
        "required": ["id", "object", "created", "owned_by", "root", "parent"],
    }
    return shape(object=said("list"), data={**each(entry, len(names)), "maxItems": len(names)})
