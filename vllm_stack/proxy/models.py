"""The models of a stack: what they are called, and which servers have which.

Of several, a request names its own. Where there is one, every server has it, and nothing of a
request is read to find that out: a name that is wrong is vLLM's to refuse.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_stack.proxy.model_name import in_body, required_in_query
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request import Request
from vllm_stack.proxy.routes import Route
from vllm_stack.proxy.settings import ProxySettings

# Characters of an unknown name that are repeated to the client.
_SHOWN = 100


class Models:
    """The models, numbered from 0 in the order of the settings.

    `names` are those of each, its own first. `any` is the number of a request that is about none in
    particular: 0 where there is one model, which every request is about, else one that no model has.
    `others` are, by such a number, the indices of the servers that do not have it.
    """

    def __init__(self, settings: ProxySettings) -> None:
        self.names = settings.models
        self.several = len(self.names) > 1
        self.any = len(self.names) if self.several else 0
        owners = [server.model for server in settings.servers]
        self.others: list[frozenset[int]] = [
            frozenset(index for index, owner in enumerate(owners) if owner != number)
            for number in range(len(self.names))
        ]
        if self.several:
            self.others.append(frozenset())
        self._numbers = {name: number for number, names in enumerate(self.names) for name in names}

    def number(self, name: str) -> int:
        """Give the number of the model of this name.

        Raises `Refusal` 404, with OpenAI's `code`, for one that there is not.
        """
        number = self._numbers.get(name)
        if number is None:
            shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
            raise Refusal(
                404,
                "model_not_found",
                f"The model `{shown}` does not exist: GET /v1/models lists those that do",
                param="model",
            )
        return number

    def of(self, request: Request) -> int:
        """Give the number of the model a request is for; raises `Refusal` for one that names none of them."""
        if not self.several:
            return self.any
        route = request.head.route
        if route is Route.INFERENCE:
            return self.number(in_body(request))
        if route is Route.TUNNEL:
            return self.number(required_in_query(request))
        return self.any


def lanes(models: Sequence[Sequence[str]]) -> int:
    """Give how many lines requests may wait in: one a model, and one for those about none in particular."""
    return len(models) + 1 if len(models) > 1 else 1
