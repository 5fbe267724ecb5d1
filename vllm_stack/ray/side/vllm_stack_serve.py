"""What runs inside Ray Serve: the ingress with the names that clients know, and the health of the whole.

Ray imports it in the environment of vLLM, where vllm-stack itself need not be installed: it stands on Ray
and what comes with it. Both run on the head's box, the only one that has this file.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import HTTPException
from ray import serve
from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Ingress(OpenAiIngress):
    """Ray's ingress, which answers as vLLM does where Ray's own answers have another shape.

    `aliases` are further names, with the model that each stands for.
    """

    def __init__(self, *args: Any, aliases: Mapping[str, str], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._aliases = aliases
        self._since = int(time.time())

    async def _process_llm_request(self, body: Any, *args: Any, **settings: Any) -> Response:
        """Refuse an unknown name as vLLM does (`entrypoints/openai/models/serving.py`)."""
        try:
            await self._get_model_id(self._aliases.get(body.model, body.model))
        except HTTPException as error:
            if error.status_code != 404:
                raise
            message = f"The model `{body.model}` does not exist."
            what = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            return JSONResponse({"error": what}, 404)
        return await super()._process_llm_request(body, *args, **settings)

    async def _get_response(self, *, body: Any, **settings: Any) -> AsyncIterator[Any]:
        """Ask for a model by its own name, whichever the client said."""
        body.model = self._aliases.get(body.model, body.model)
        async for answer in super()._get_response(body=body, **settings):
            yield answer

    async def models(self) -> JSONResponse:
        """List the models as vLLM does (`entrypoints/openai/models/protocol.py`), aliases among them."""
        cards = (await super().models()).data
        known = {card.id: card.metadata for card in cards}
        names = {**{name: name for name in known}, **self._aliases}
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": self._since,
                        "owned_by": "vllm",
                        "root": model,
                        "parent": None,
                        "max_model_len": known[model].get("max_request_context_length"),
                        "permission": [_permission(self._since)],
                    }
                    for name, model in names.items()
                ],
            }
        )


def _permission(since: int) -> dict[str, Any]:
    """Give what vLLM says of every model's permissions, which no client heeds."""
    allowed = ("sampling", "logprobs", "view")
    refused = ("create_engine", "search_indices", "fine_tuning")
    return {
        "id": f"modelperm-{uuid.uuid4().hex}",
        "object": "model_permission",
        "created": since,
        **{f"allow_{what}": what in allowed for what in (*allowed, *refused)},
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


@serve.deployment
class Health:
    """Says 200 while every model has a replica that runs, as far as Ray Serve's controller knows."""

    def __init__(self, application: str) -> None:
        self._application = application

    async def __call__(self, request: Request) -> JSONResponse:
        status = (await asyncio.to_thread(serve.status)).applications.get(self._application)
        if status is None:
            return JSONResponse({"status": "not deployed"}, 503)
        running = {
            name: sum(count for state, count in one.replica_states.items() if _word(state) == "RUNNING")
            for name, one in status.deployments.items()
        }
        well = bool(running) and all(running.values())
        return JSONResponse({"status": _word(status.status), "running": running}, 200 if well else 503)


def health(settings: Mapping[str, str]) -> Application:
    """Build the application that serves /health."""
    return Health.bind(settings["application"])


def _word(state: Any) -> str:
    """Spell a state, which Ray gives as a member of an enumeration or as its word."""
    return str(getattr(state, "value", state))
