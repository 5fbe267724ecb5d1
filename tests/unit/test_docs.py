"""What the pages of the documentation promise: links, commands, targets and files that are there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.wire.corpus import ACCEPTED, REFUSED
from vllm_stack.cli import group
from vllm_stack.reference import causes

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks/README.md"]
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#+ (?P<title>.+)$", re.MULTILINE)
_SHELL = re.compile(r"^```sh\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`(?P<text>[^`\n]+)`")
_TARGET = re.compile(r"^(?P<name>[a-z-]+):", re.MULTILINE)
# A link in the words `module.Name`, or `module.Class.method`.
_SYMBOL = re.compile(r"\[`(?P<module>\w+)\.(?P<name>(?!py`)[\w.]+)`\]\((?P<target>[^)\s]+\.py)\)")
_FILE = re.compile(r"[\w./-]+\.(?:py|c|j2|toml|sh|lua)")
# Places where a file is looked for that is named by less than its whole path.
_PLACES = ("vllm_stack", "tests", "benchmarks", "templates", "docs")
# Files of other programs, and those that a user has or a stack makes.
_ELSEWHERE = ("vllm/", "entrypoints/", "serve/", "middleware/")
_MADE = frozenset({"stack.toml", "gunicorn.conf.py"})


def called(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, made as GitHub makes them."""
    titles = (match["title"].replace("`", "") for match in _HEADING.finditer(prose(page)))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: Path) -> Iterator[str]:
    """Give the commands in the shell blocks and the spans of a page, without comments."""
    blocks = (match["text"].replace("\\\n", " ") for match in _SHELL.finditer(page.read_text("utf-8")))
    spans = (match["text"] for match in _SPAN.finditer(prose(page)))
    for line in (*(line for block in blocks for line in block.splitlines()), *spans):
        yield from (part.strip() for part in re.split(r"&&|\|\s|(?<!\S)#.*|;\s|\s&$", line) if part)


def of_ours(page: Path) -> Iterator[list[str]]:
    """Give the words behind `vllm-stack` in all commands of a page."""
    for line in commands(page):
        line = re.sub(r"^\S*/(?=vllm-stack )", "", line.removeprefix("sudo "))
        if line.startswith("vllm-stack ") and "<" not in line and "|" not in line:
            yield [word for word in shlex.split(line)[1:] if word != "..."]


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_link_leads_somewhere(page: Path) -> None:
    for match in _LINK.finditer(prose(page)):
        target, _, anchor = match["target"].partition("#")
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), match["target"]
        assert not anchor or anchor in anchors(there), match["target"]


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_command_is_one_that_the_command_line_takes(page: Path) -> None:
    for words in of_ours(page):
        verb: click.Command = group
        context = click.Context(group, info_name="vllm-stack")
        if words[0] in ("--version", "--help"):
            continue
        while isinstance(verb, click.Group) and words:
            found = verb.get_command(context, words[0])
            assert found is not None, words
            verb, context, words = found, click.Context(found, info_name=words[0], parent=context), words[1:]
        if words == ["--help"]:
            continue
        # What a verb insists on may be left out where a page speaks of it; what is there must be right.
        verb.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_target_of_make_is_there(page: Path) -> None:
    targets = {match["name"] for match in _TARGET.finditer((ROOT / "Makefile").read_text("utf-8"))}
    for line in commands(page):
        if line.startswith("make "):
            asked = [word for word in shlex.split(line)[1:] if "=" not in word and word != "..."]
            assert set(asked) <= targets, line


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_every_file_of_ours_that_is_named_is_there(page: Path) -> None:
    known = [str(path.relative_to(ROOT)) for place in _PLACES for path in (ROOT / place).rglob("*.*")]
    for match in _SPAN.finditer(prose(page)):
        for name in expanded(match["text"]):
            ours = _FILE.fullmatch(name) and not name.startswith(_ELSEWHERE) and name not in _MADE
            if ours and not (ROOT / name).exists():
                assert any(path.endswith(f"/{name}") for path in known), name


@pytest.mark.parametrize("page", PAGES, ids=called)
def test_what_is_linked_by_its_name_in_a_module_is_defined_there(page: Path) -> None:
    for match in _SYMBOL.finditer(prose(page)):
        module = (page.parent / match["target"]).resolve()
        assert match["module"] == module.stem, match["target"]
        assert match["name"] in defined(module), match["name"]


def defined(module: Path) -> set[str]:
    """Give the names that a module defines, methods behind their class."""
    names: set[str] = set()
    for node in ast.parse(module.read_text("utf-8")).body:
        inside = [node, *node.body] if isinstance(node, ast.ClassDef) else [node]
        for one in inside:
            named = [
                getattr(one, "name", None),
                *(getattr(t, "id", None) for t in getattr(one, "targets", ())),
            ]
            before = f"{node.name}." if one is not node and isinstance(node, ast.ClassDef) else ""
            names |= {before + name for name in named if name}
    return names


def expanded(text: str) -> Iterator[str]:
    """Give the names that a span with braces stands for, as a shell would."""
    braces = re.fullmatch(r"(?P<before>[^{]*)\{(?P<names>[^}]*)\}(?P<after>.*)", text)
    if braces is None:
        yield text
    else:
        yield from (braces["before"] + name + braces["after"] for name in braces["names"].split(","))


@pytest.mark.parametrize(("section", "page"), [("Proof", "proof.md"), ("What it costs", "performance.md")])
def test_the_figures_on_the_first_page_are_those_of_the_page_behind_it(section: str, page: str) -> None:
    _, _, rest = (ROOT / "README.md").read_text("utf-8").partition(f"\n## {section}\n")
    figures = [line for line in rest.partition("\n## ")[0].splitlines() if re.match(r"\||[a-z-]+ {2,}", line)]
    behind = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    assert len(figures) > 5
    assert [line for line in figures if line not in behind] == []


def test_every_page_can_be_reached_from_the_first_one() -> None:
    reached: set[Path] = set()
    waiting = [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = (match["target"].partition("#")[0] for match in _LINK.finditer(prose(page)))
        ours = (link for link in links if link.endswith(".md") and "://" not in link)
        waiting += {(page.parent / link).resolve() for link in ours} - reached
    assert set(PAGES) <= reached


def test_the_page_of_causes_is_what_the_rules_say() -> None:
    page = (ROOT / "docs/causes.md").read_text("utf-8")
    assert page == causes.reference(), "the rules have changed: run `make docs`"


def test_the_page_of_odd_requests_has_all_of_them_with_our_answers() -> None:
    page = (ROOT / "docs/wire.md").read_text("utf-8")
    for row in (*REFUSED, *ACCEPTED):
        assert f"\n| {row.name} | {row.status} |" in page, f"{row.name}: run `make wire`"
