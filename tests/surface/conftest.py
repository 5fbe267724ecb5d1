from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.proxy.conftest import scripted, scripted_stack, shared_scripted, shared_stack, stack
from tests.integration.proxy.harness import ScriptedWorker, Stack
from tests.support.polling import until
from tests.surface.door import Door

__all__ = ["scripted", "shared_scripted", "shared_stack", "stack"]
Scripted = tuple[Stack, list[ScriptedWorker]]
# The models of a stack of two, by the worker that has each.
MODELS = (("org/big", "big"), ("org/small", "small"))


def quiet(door: Door) -> None:
    """Nothing is in flight any more, nothing has failed in a worker, and no bug of ours is in the log."""
    until(lambda: not any(door.stack.in_flight()), 5, "the proxy has nothing in flight")
    state = door.stack.admin()
    assert (state["waiting"], state["totals"]["failures"]) == (0, 0), state
    door.stack.check_log()


@pytest.fixture
def door(scripted: Scripted) -> Iterator[Door]:
    """The door of one model, which two workers have."""
    found = Door(*scripted)
    yield found
    quiet(found)


@pytest.fixture(scope="session")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with Stack(tmp_path_factory.mktemp("pair")) as stack:
        stack.serve_models(*((names, [worker]) for worker, names in enumerate(MODELS)))
        with scripted_stack(stack) as scripted:
            yield Door(*scripted)


@pytest.fixture
def pair(shared_pair: Door) -> Iterator[Door]:
    """The door of two models, each on a worker of its own."""
    yield shared_pair
    quiet(shared_pair)
