"""The picture on a screen: tables as wide as it is, then what there is to say in words."""

from __future__ import annotations

from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vllm_stack.status.columns import Column, History, columns_of, pack
from vllm_stack.status.picture import Picture
from vllm_stack.status.remarks import remarks
from vllm_stack.status.state import State
from vllm_stack.status.verdict import ALL_READY, DEGRADED, exit_code, summary
from vllm_stack.terminal_text import printable

_GAP = 2
_GOOD, _BUSY, _BAD, _AWAY = (Style(color=name) for name in ("green", "yellow", "red", "magenta"))
_STYLES = {
    "running": _GOOD,
    State.READY: _GOOD,
    State.DRAINING: _AWAY,
    State.DRAINED: _AWAY,
    State.LOADING: _BUSY,
    State.QUEUED: _BUSY,
    State.BLOCKED: _BUSY,
    State.STARTING: _BUSY,
    State.STOPPING: _BUSY,
    State.WAITING: _BAD,
    State.FAILED: _BAD,
    State.WEDGED: _BAD,
    State.NOT_ANSWERING: _BAD,
}
_OF_CODE = {ALL_READY: _GOOD, DEGRADED: _BUSY}


def screen(picture: Picture, width: int, history: History | None = None) -> Group:
    """Show it within `width` places; `history` are the tokens that came out of each worker, look by look."""
    return Group(*_pieces(picture, width, history or {}))


def _pieces(picture: Picture, width: int, history: History) -> Iterator[RenderableType]:
    for columns in pack(columns_of(picture, history), width, _GAP, cell_len):
        yield _table(columns)
        yield Text()
    said = list(remarks(picture))
    widest = max(len(name) for name, _ in said)
    for name, text in said:
        yield Text(f"{name:{widest}}  {text}")
    yield Text()
    yield Text(printable(summary(picture)), _OF_CODE.get(exit_code(picture), _BAD))


def _table(columns: list[Column]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style=Style(bold=True))
    for column in columns:
        table.add_column(column.title, justify="right" if column.numbers else "left", no_wrap=True)
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(_cell, columns, row))
    return table


def _cell(column: Column, text: str) -> Text:
    return Text(text, _STYLES.get(text, "") if column.title == "state" else "")
