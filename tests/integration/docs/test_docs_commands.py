"""Every command of README.md and docs/ runs as it is written, in the order of its page.

A page is worked through in a world of its own (`world.py`): the real vllm-stack, supervisord, make and
curl; a fake vLLM, eight GPUs and a hub that are not there. What is typed otherwise than it is written, and
what is not typed at all, stands in `tables.py`, each with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fake_hub import FakeHub

from .looks import LOOKS
from .pages import PAGES, Command, blocks, commands
from .tables import EXCUSED, GIVEN, ON_ONE_STACK, PYTHON_BEFORE, REPLACED, SHOWN, UNTIL_CTRL_C
from .walk import Walk
from .world import World, add_models

# Whoever asks first waits for a walk that takes half a minute alone.
pytestmark = pytest.mark.timeout(300)
RUN = {"sh", "python", "toml"}
ALL = {page: commands(page) for page in PAGES}
WALKED = [page for page, found in ALL.items() if any(command.name not in EXCUSED for command in found)]
Outcome = list[Command] | BaseException
Walked = Callable[[str], list[Command]]


def walk_through(pages: Sequence[str], world: World) -> dict[str, Outcome]:
    """Work through pages in one world; give what was run of each, or what went wrong."""
    outcomes: dict[str, Outcome] = {}
    with world:
        for page in pages:
            try:
                outcomes[page] = Walk(page, world).go()
            except (Exception, pytest.fail.Exception) as error:
                outcomes[page] = error
    return outcomes


@pytest.fixture(scope="module")
def walked(
    request: pytest.FixtureRequest, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Walked]:
    """Give what was run of a page. The pages that were collected begin four at a time, the longest first."""
    params = [getattr(item, "callspec", None) for item in request.session.items if item.path == request.path]
    wanted = {p.params["page"] for p in params if p and "page" in p.params} & set(WALKED)
    alone = [(page,) for page in wanted.difference(ON_ONE_STACK)]
    together = tuple(page for page in ON_ONE_STACK if page in wanted)
    walks = [*([together] if together else []), *alone]
    walks.sort(key=lambda pages: -sum(len(ALL[page]) for page in pages))

    with FakeHub() as hub, ThreadPoolExecutor(4) as pool:
        add_models(hub)

        def walk(pages: Sequence[str]) -> dict[str, Outcome]:
            return walk_through(pages, World(tmp_path_factory.mktemp("page"), nvml_library, hub))

        running = {pages: pool.submit(walk, pages) for pages in walks}

        def outcome(page: str) -> list[Command]:
            (result,) = (walk.result()[page] for pages, walk in running.items() if page in pages)
            if isinstance(result, BaseException):
                raise result
            return result

        yield outcome
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", WALKED)
def test_the_commands_of_a_page_run_as_they_are_written(page: str, walked: Walked) -> None:
    """Every one of them, and in their order; but for those that are excused with a reason."""
    assert walked(page) == [command for command in ALL[page] if command.name not in EXCUSED]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_in_a_language_that_is_run_or_only_shown(page: str) -> None:
    assert {block.language for block in blocks(page)} <= RUN | SHOWN.keys()


def test_nothing_is_excused_prepared_or_looked_at_that_no_page_says() -> None:
    """What is gone from the pages is gone from the tables, or they would excuse it when it comes back."""
    given = [line for lines in GIVEN.values() for line in lines]
    said = [command.name for found in ALL.values() for command in found]
    with_page = [f"{page}: {command.name}" for page, found in ALL.items() for command in found]
    assert EXCUSED.keys() - set(said) == set()
    assert UNTIL_CTRL_C.keys() - {*said, *given} == set()
    assert LOOKS.keys() - {*said, *with_page} == set()
    assert {*GIVEN, *ON_ONE_STACK, *PYTHON_BEFORE} - set(WALKED) == set()
    assert SHOWN.keys() - {block.language for page in PAGES for block in blocks(page)} == set()


def test_nothing_is_replaced_that_no_page_says() -> None:
    for replaced in REPLACED:
        pages = [replaced.page] if replaced.page else WALKED
        texts = [command.text for page in pages for command in ALL[page] if command.name not in EXCUSED]
        texts += [line for page in pages for line in GIVEN.get(page, ())]
        assert any(replaced.words in text for text in texts), replaced.words


def test_nothing_is_excused_and_run() -> None:
    assert EXCUSED.keys() & {*UNTIL_CTRL_C, *LOOKS} == set()
