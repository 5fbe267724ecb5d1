"""What was seen of a stack at one moment, before anybody judges it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllm_stack.gpus.usage import GpuUsage
from vllm_stack.records.drain_order import DrainOrder
from vllm_stack.records.lives import Lives
from vllm_stack.records.phase import PhaseNote
from vllm_stack.roll.record import RollRecord
from vllm_stack.status.figures import Figures
from vllm_stack.status.traffic import Traffic
from vllm_stack.worker.failure import Failure


@dataclass(frozen=True, slots=True)
class Place:
    """One server as it was rendered; `gpus` are its words in CUDA_VISIBLE_DEVICES.

    A `remote` one runs elsewhere.
    """

    name: str
    model: str
    address: str
    gpus: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    remote: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a server stands with the proxy; `open_in` are the proxy's processes that send to it."""

    state: str
    in_flight: int
    open_in: int


@dataclass(frozen=True, slots=True)
class ProxySight:
    """What the admin door told. `reload_trouble` says what was wrong with the last reload."""

    standings: Mapping[str, Standing]
    waiting: int
    totals: Mapping[str, int]
    traffic: Traffic | None = None
    reload_trouble: str | None = None


@dataclass(frozen=True, slots=True)
class WorkerSight:
    """What was seen of one worker.

    `note` is its wrapper's, None if no wrapper lives; `program` is supervisord's word, "" where it does
    not tell; `trouble` is what the server's own /health has against it, just now; `log` are the last
    lines of one that loads; `order` keeps requests from it.
    """

    note: PhaseNote | None
    program: str
    trouble: str | None
    standing: Standing | None = None
    figures: Figures | None = None
    failure: Failure | None = None
    lives: Lives = field(default_factory=Lives)
    order: DrainOrder | None = None
    log: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Sights:
    """Everything, at about the moment `at` (Unix time).

    `supervisord` is running, stopping or not answering; `proxy_program` is its word for the proxy, and
    `proxy_since` when that was started; `proxy` is None while the admin door does not answer. `roll` is
    one that did not come to its end, and `rolling` whether somebody is at it.
    """

    at: float
    supervisord: str
    proxy_program: str
    proxy_since: float | None
    proxy: ProxySight | None
    workers: Mapping[str, WorkerSight]
    gpus: Mapping[str, GpuUsage] = field(default_factory=dict)
    roll: RollRecord | None = None
    rolling: bool = False
