from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.proxy.harness import ScriptedWorker, Stack


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Two workers and a proxy for all tests that leave them as they were."""
    with Stack(tmp_path_factory.mktemp("proxy")) as stack:
        yield stack.start()


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared stack, quiet again after the test: nothing in flight, no bug in the log."""
    yield shared_stack
    shared_stack.wait_quiet()
    shared_stack.check_log()


@pytest.fixture
def new_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Stacks of one's own, for tests that kill."""
    with ExitStack() as stacks:

        def make(**options: Any) -> Stack:
            directory = tmp_path / f"stack-{len(list(tmp_path.iterdir()))}"
            return stacks.enter_context(Stack(directory, **options))

        yield make


Scripted = tuple[Stack, list[ScriptedWorker]]


@contextmanager
def scripted_stack(stack: Stack) -> Iterator[Scripted]:
    """Start a stack whose workers are scripted."""
    with ExitStack() as closing:
        workers = [ScriptedWorker(worker.port) for worker in stack.workers]
        for worker in workers:
            closing.callback(worker.close)
        stack.start(workers=False)
        yield stack, workers


@pytest.fixture(scope="session")
def shared_scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripted]:
    with Stack(tmp_path_factory.mktemp("scripted")) as stack, scripted_stack(stack) as scripted:
        yield scripted


@pytest.fixture
def scripted(shared_scripted: Scripted) -> Iterator[Scripted]:
    """Two workers whose bytes the test writes, and a proxy before them."""
    stack, workers = shared_scripted
    stack.wait_ready()
    for worker in workers:
        worker.hang_up()
        worker.requests.clear()
    yield shared_scripted
    for worker in workers:
        worker.play = lambda sock, data: False
    stack.check_log()
