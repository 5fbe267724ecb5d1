"""The table of servers: a row each, and as many columns beside each other as a screen is wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from vllm_stack.gpus.usage import GpuUsage
from vllm_stack.ranges import ranges
from vllm_stack.status.picture import Picture, Proxy, Upstream, Worker
from vllm_stack.status.rates import TokenRates
from vllm_stack.status.sparkline import sparkline
from vllm_stack.status.words import UNKNOWN, duration, memory, number, rate, share
from vllm_stack.terminal_text import printable

Server = Proxy | Worker | Upstream
# What came out of each worker in a second, look by look.
History = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Column:
    """One fact of every server; a cell is "" where it has none."""

    title: str
    cells: tuple[str, ...]
    numbers: bool = False

    def width(self, measure: Callable[[str], int] = len) -> int:
        """Give how many places of the screen it takes."""
        return max(measure(text) for text in (self.title, *self.cells))


def columns_of(picture: Picture, history: History) -> list[Column]:
    """Give the columns, those first that a person looks for first; one without a fact is left out."""
    servers: list[Server] = [picture.proxy, *picture.workers, *picture.upstreams]
    highest = max((value or 0.0 for values in history.values() for value in values), default=0.0)
    several = len({one.place.model for one in servers if not isinstance(one, Proxy)}) > 1
    facts: list[tuple[str, bool, Callable[[Server], str]]] = [
        ("server", False, _name),
        ("state", False, lambda one: one.state),
        ("for", True, partial(_how_long, picture.at)),
        ("active", True, lambda one: number(one.in_flight)),
        ("queued", True, _queued),
        ("tok/s in", True, partial(_tokens, picture, attrgetter("tokens_in"))),
        ("tok/s out", True, partial(_tokens, picture, attrgetter("tokens_out"))),
        ("KV", True, _of_figures(lambda one: share(one.figures.kv_cache if one.figures else None))),
        ("hits", True, _of_figures(lambda one: share(one.figures.prefix_hit_rate if one.figures else None))),
        ("tok/s out lately", False, partial(_lately, history, highest)),
        ("GPUs", False, _gpus),
        ("GPU memory", True, _gpu_memory),
        ("busy", True, _gpu_busy),
        ("cores", False, _cores),
        ("starts", True, lambda one: str(one.starts) if isinstance(one, Worker) else ""),
        ("failures", True, lambda one: str(one.failures) if isinstance(one, Worker) else ""),
        *([("model", False, _model)] if several else []),
        ("address", False, _address),
    ]
    columns = [Column(title, tuple(map(cell, servers)), numbers) for title, numbers, cell in facts]
    return [column for column in columns if any(column.cells)]


def pack(
    columns: Sequence[Column], width: int, gap: int, measure: Callable[[str], int]
) -> list[list[Column]]:
    """Share out columns among as few tables as fit into `width`; each begins with the first column."""
    first, *rest = columns
    tables: list[list[Column]] = []
    room = -1
    for column in rest:
        needed = gap + column.width(measure)
        if room < needed:
            tables.append([first])
            room = width - first.width(measure)
        tables[-1].append(column)
        room -= needed
    return tables


def _name(one: Server) -> str:
    return "proxy" if isinstance(one, Proxy) else one.place.name


def _how_long(at: float, one: Server) -> str:
    if isinstance(one, Upstream):
        return ""
    if isinstance(one, Worker) and one.until is not None:
        return f"{duration(one.until - at)} left"
    return "" if one.since is None else duration(at - one.since)


def _queued(one: Server) -> str:
    if isinstance(one, Proxy):
        return number(one.waiting)
    return number(one.figures.waiting if one.figures else None) if isinstance(one, Worker) else ""


def _of_figures(cell: Callable[[Worker], str]) -> Callable[[Server], str]:
    return lambda one: cell(one) if isinstance(one, Worker) else ""


def _tokens(picture: Picture, of: Callable[[TokenRates], float | None], one: Server) -> str:
    """Those of a worker; and beside the proxy all of them, where there are several."""
    if isinstance(one, Worker):
        return rate(of(one.rates))
    known = [value for worker in picture.workers if (value := of(worker.rates)) is not None]
    return rate(sum(known)) if isinstance(one, Proxy) and len(picture.workers) > 1 and known else ""


def _lately(history: History, highest: float, one: Server) -> str:
    return sparkline(history.get(one.place.name, ()), highest) if isinstance(one, Worker) else ""


def _gpus(one: Server) -> str:
    if not isinstance(one, Worker):
        return ""
    tokens = one.place.gpus
    if tokens and all(token.isdecimal() for token in tokens):
        return ranges([int(token) for token in tokens])
    # The beginning of a UUID tells it from any other here.
    return ",".join(token[:12] for token in tokens)


def _gpu_memory(one: Server) -> str:
    gpus = _gpus_of(one)
    used = [gpu.memory_used for gpu in gpus if gpu.memory_used is not None]
    total = [gpu.memory_total for gpu in gpus if gpu.memory_total is not None]
    if not gpus:
        return ""
    return memory(sum(used), sum(total)) if len(used) == len(total) == len(gpus) else UNKNOWN


def _gpu_busy(one: Server) -> str:
    gpus = _gpus_of(one)
    busy = [gpu.busy for gpu in gpus if gpu.busy is not None]
    if not gpus:
        return ""
    return f"{sum(busy) / len(busy):.0f}%" if len(busy) == len(gpus) else UNKNOWN


def _gpus_of(one: Server) -> tuple[GpuUsage, ...]:
    return one.gpus if isinstance(one, Worker) else ()


def _cores(one: Server) -> str:
    """Name the cores of a worker that computes on them."""
    return ranges(one.place.cores) if isinstance(one, Worker) and not one.place.gpus else ""


def _model(one: Server) -> str:
    return "" if isinstance(one, Proxy) else printable(one.place.model)


def _address(one: Server) -> str:
    return one.url if isinstance(one, Proxy) else one.place.address
