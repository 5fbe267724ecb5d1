"""A stack as `status` and `top` show it: what was seen, judged and put together, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_stack.gpus.usage import GpuUsage
from vllm_stack.status.figures import Figures
from vllm_stack.status.progress import Progress
from vllm_stack.status.rates import TokenRates, TrafficRates
from vllm_stack.status.sights import Place, ProxySight, Sights, WorkerSight
from vllm_stack.status.state import State, judge, progress_of
from vllm_stack.status.traffic import Histogram

NOT_ANSWERING = "not answering"
_RUNNING = "RUNNING"
# Seconds in which the proxy may not listen yet, although supervisord has started it.
_COMING_UP = 10.0


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker now; `since` and `until` are Unix times, None is what nobody knows.

    `figures` are the server's own, `rates` tokens a second; shares are from 0 to 1. `last_failure` is the
    one that the next start heeds: a stop that was asked for clears it.
    """

    place: Place
    state: State
    since: float | None
    until: float | None
    detail: str
    progress: Progress | None
    in_flight: int | None
    figures: Figures | None
    rates: TokenRates
    gpus: tuple[GpuUsage, ...]
    starts: int
    failures: int
    last_failure: str | None
    failed_at: str | None
    ordered_out: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Upstream:
    """A server elsewhere, as the proxy sees it."""

    place: Place
    state: str
    in_flight: int | None


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy now; `since` is a Unix time.

    `first_byte` is over `first_byte_seconds`, or since its start where that is None.
    """

    url: str
    state: str
    since: float | None
    in_flight: int | None
    waiting: int | None
    rates: TrafficRates
    first_byte: Histogram | None
    first_byte_seconds: float | None
    totals: Mapping[str, int]
    reload_trouble: str | None


@dataclass(frozen=True, slots=True)
class Roll:
    """A roll that is not at its end: who began it when (Unix time), what is left, and whether it runs."""

    began: float
    by: str
    done: tuple[str, ...]
    left: tuple[str, ...]
    running: bool


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, at the moment `at` (Unix time)."""

    at: float
    supervisord: str
    proxy: Proxy
    workers: tuple[Worker, ...]
    upstreams: tuple[Upstream, ...]
    roll: Roll | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What two looks or more gave beside the last one.

    `first_byte` is over the last `first_byte_seconds`; None: there was no time to look so long.
    """

    tokens: Mapping[str, TokenRates] = field(default_factory=dict)
    traffic: TrafficRates = field(default_factory=TrafficRates)
    first_byte: Histogram | None = None
    first_byte_seconds: float | None = None


def compose(url: str, places: Sequence[Place], sights: Sights, pace: Pace) -> Picture:
    """Judge what was seen of the servers in `places`, behind the door at `url`."""
    return Picture(
        at=sights.at,
        supervisord=sights.supervisord,
        proxy=_proxy(url, sights, pace),
        workers=tuple(_worker(place, sights, pace) for place in places if not place.remote),
        upstreams=tuple(_upstream(place, sights.proxy) for place in places if place.remote),
        roll=_roll(sights),
    )


def _worker(place: Place, sights: Sights, pace: Pace) -> Worker:
    name = place.name
    seen: WorkerSight = sights.workers[name]
    state, detail = judge(name, seen)
    note, failure, order = seen.note, seen.failure, seen.order
    return Worker(
        place=place,
        state=state,
        since=note.since if note else None,
        until=note.until if note and state is State.WAITING else None,
        detail=detail,
        progress=progress_of(name, state, seen),
        in_flight=seen.standing.in_flight if seen.standing else None,
        figures=seen.figures,
        rates=pace.tokens.get(name, TokenRates()),
        gpus=tuple(sights.gpus.get(token, GpuUsage(token)) for token in place.gpus),
        starts=seen.lives.starts,
        failures=seen.lives.failures,
        last_failure=None if failure is None else failure.story,
        failed_at=None if failure is None else failure.time,
        ordered_out=None if order is None else asdict(order),
    )


def _upstream(place: Place, proxy: ProxySight | None) -> Upstream:
    standing = proxy.standings.get(place.name) if proxy else None
    if standing is None:
        return Upstream(place, State.UNKNOWN, None)
    return Upstream(place, standing.state, standing.in_flight)


def _proxy(url: str, sights: Sights, pace: Pace) -> Proxy:
    program, seen = sights.proxy_program, sights.proxy
    state = program.lower() or State.UNKNOWN
    if seen is None and program in (_RUNNING, ""):
        young = sights.proxy_since is not None and sights.at - sights.proxy_since < _COMING_UP
        state = "starting" if young else NOT_ANSWERING
    elif seen is not None and not program:
        state = "running"  # supervisord does not tell, but it has just answered itself
    since_start = seen.traffic.first_byte if seen and seen.traffic else None
    return Proxy(
        url=url,
        state=state,
        since=sights.proxy_since,
        in_flight=sum(standing.in_flight for standing in seen.standings.values()) if seen else None,
        waiting=seen.waiting if seen else None,
        rates=pace.traffic,
        first_byte=pace.first_byte or since_start,
        first_byte_seconds=pace.first_byte_seconds if pace.first_byte else None,
        totals=seen.totals if seen else {},
        reload_trouble=seen.reload_trouble if seen else None,
    )


def _roll(sights: Sights) -> Roll | None:
    record = sights.roll
    if record is None:
        return None
    return Roll(record.began, record.by, record.done, tuple(record.left), sights.rolling)
