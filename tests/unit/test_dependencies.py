"""What pyproject.toml asks for: all of it is used, nothing else is, and the guide says why."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
_PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
DEPENDENCIES: list[str] = _PYPROJECT["project"]["dependencies"]
EXTRAS = [line for lines in _PYPROJECT["project"]["optional-dependencies"].values() for line in lines]
# Asked for without an import of ours: the module, ours or another's, that needs it, and by which words.
_ASKED_FOR_BY = {
    "packaging": ("gunicorn.workers.ggevent", "from packaging"),
    "py-spy": ("vllm_stack.worker.evidence", '"py-spy"'),
    "supervisor": ("vllm_stack.commands.supervisord", '"supervisor.supervisord"'),
}
# Programs for the Python that has vLLM and Ray: what they import comes with these.
_ELSEWHERE = {"side", "asking"}
_ROW = re.compile(r"^\| (?P<names>[^|]+) \| (?P<why>[^|]+) \|$", re.MULTILINE)


def named(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


def imports(source: Path) -> Iterator[str]:
    """Give the outermost packages that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@cache
def imported() -> dict[str, set[str]]:
    """Give the packages of others that the program imports, and by which names each may be installed."""
    sources = (path for path in (ROOT / "vllm_stack").rglob("*.py") if not _ELSEWHERE & set(path.parts))
    found = {name for source in sources for name in imports(source)}
    brought_by = packages_distributions()
    others = found - sys.stdlib_module_names - {"vllm_stack"}
    return {package: {canonicalize_name(name) for name in brought_by.get(package, ())} for package in others}


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_every_dependency_names_the_oldest_version_that_will_do(line: str) -> None:
    # `make test-oldest` installs these very versions: it reads >= as ==.
    assert re.fullmatch(r"[\w-]+>=\d+(\.\d+)*", line), line


@pytest.mark.parametrize("line", DEPENDENCIES, ids=named)
def test_every_dependency_is_used_by_the_program(line: str) -> None:
    if named(line) not in _ASKED_FOR_BY:
        assert named(line) in set().union(*imported().values())
        return
    module, words = _ASKED_FOR_BY[named(line)]
    spec = find_spec(module)
    assert spec, module
    assert words in Path(spec.origin or "").read_text("utf-8")


def test_nothing_is_imported_that_was_not_asked_for() -> None:
    asked_for = {named(line) for line in (*DEPENDENCIES, *EXTRAS, *_PYPROJECT["build-system"]["requires"])}
    assert [package for package, names in imported().items() if not names & asked_for] == []


def test_the_guide_says_of_each_what_it_is_for_and_of_no_other() -> None:
    _, _, section = (
        (ROOT / "docs/operating.md").read_text("utf-8").partition("### What comes with it, and why\n")
    )
    rows = list(_ROW.finditer(section.partition("\n#")[0]))[1:]
    first = {canonicalize_name(name) for row in rows for name in row["names"].split(", ")} - {"---"}
    beside = {canonicalize_name(name) for row in rows for name in re.findall(r"`([\w-]+)`", row["why"])}
    wanted = {named(line) for line in (*DEPENDENCIES, *EXTRAS)}
    assert first <= wanted
    assert wanted <= first | beside
