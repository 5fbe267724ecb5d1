"""One model of a stack: what was asked for it, and what the machine has for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vllm_stack.errors import UsageError
from vllm_stack.inventory import Inventory
from vllm_stack.model.find import Model
from vllm_stack.options import Options
from vllm_stack.served_names import served_names


@dataclass(frozen=True, slots=True)
class Deployment:
    """Options of one model, and the inventory they meet."""

    options: Options
    inventory: Inventory

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call it, its own name first."""
        model = self.inventory.model
        return served_names(self.options, model.name if isinstance(model, Model) else self.options.model)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.names[0]


def check_distinct(deployments: Sequence[Deployment]) -> None:
    """Raise `UsageError` for a name that two models of a stack have, or that no terminal should be shown."""
    owners: dict[str, Deployment] = {}
    for one in deployments:
        for name in one.names:
            if len(deployments) > 1 and not name.isprintable():
                raise UsageError(f"{name!r} cannot be the name of a model: leave out what cannot be printed")
            if owners.setdefault(name, one) is not one:
                raise UsageError(
                    f"Two models are called {name!r}: give one of them another alias, or another name with "
                    "--served-model-name in its vllm-args"
                )
