"""What the pages tell a reader to type or to write down: every command, in the order of its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGES = tuple(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md")))
)
# Made of what `--help` says, where examples are indented instead of fenced.
REFERENCE = "docs/cli.md"
_FENCE = re.compile(r"^ *```")
_COMMENT = re.compile(r"(?<!\S)#(?:\s.*)?$")
_NAMED = re.compile(r"# (?P<name>[\w.-]+\.toml)\b")


@dataclass(frozen=True)
class Command:
    """One line of a shell block, or all of a block in another language; `line` counts from 1."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> str:
        """What the tables call it."""
        return self.text if self.language == "sh" else f"{self.page} ({self.language})"

    @property
    def file(self) -> str:
        """The name under which a reader writes this block down."""
        named = _NAMED.match(self.text)
        assert named, f"{self.where}: a ```{self.language} block begins with `# NAME` of the file that it is"
        return named["name"]


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its fence."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]

    def commands(self) -> Iterator[Command]:
        """Give what is to be typed: the lines of a shell, or those behind the `$` of something shown."""
        if self.language in ("python", "toml"):
            yield Command(self.page, self.line, self.language, "\n".join(self.lines) + "\n")
            return
        for line, text in _joined(self.lines, self.line + 1):
            if self.language == "sh" and text:
                yield Command(self.page, line, "sh", text)
            elif self.language == "" and text.startswith("$ "):
                yield Command(self.page, line, "sh", text.removeprefix("$ "))


def commands(page: str) -> list[Command]:
    """Give all that a page has to be typed or written down, in its order."""
    found = [command for block in blocks(page) for command in block.commands()]
    if page == REFERENCE:
        found += _indented(page)
    return sorted(found, key=lambda command: command.line)


def blocks(page: str) -> Iterator[Block]:
    """Give the fenced blocks of a page; AssertionError where one does not end."""
    begun: int | None = None
    lines = (ROOT / page).read_text("utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not _FENCE.match(line):
            continue
        if begun is None:
            begun = number
        else:
            yield Block(page, begun, lines[begun - 1].strip().strip("`"), tuple(lines[begun : number - 1]))
            begun = None
    assert begun is None, f"{page}:{begun}: a block that does not end"


def _joined(lines: tuple[str, ...], first: int) -> Iterator[tuple[int, str]]:
    """Give lines without their comments; what ends in a backslash goes on in the next one."""
    begun, text = first, ""
    for number, line in enumerate(lines, first):
        if not text:
            begun = number
        text += _COMMENT.sub("", line).strip()
        if text.endswith("\\"):
            text = text[:-1].rstrip() + " "
            continue
        yield begun, text
        text = ""
    assert not text, f"line {begun}: it goes on, and there is nothing"


def _indented(page: str) -> Iterator[Command]:
    """Give the examples of the reference; the first line under a heading is how a verb is spelled."""
    heading = False
    for number, line in enumerate((ROOT / page).read_text("utf-8").splitlines(), 1):
        if line.startswith("#"):
            heading = True
        elif line.startswith("    "):
            if not heading:
                yield Command(page, number, "sh", _COMMENT.sub("", line).strip())
            heading = False
