"""The state of the whole stack, which the page asks for every other second: one JSON for all it shows."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from vllm_stack import __version__
from vllm_stack.layout import Layout, drain_order, failure_history
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.dashboard.engine import read_figures
from vllm_stack.proxy.dashboard.past_failures import PastFailure, PastFailures
from vllm_stack.proxy.dashboard.standing import judge, judge_upstream
from vllm_stack.proxy.tally import CLIENT_LEFT, FIRST_BYTE, Tally
from vllm_stack.proxy.worker_metrics import Scrape
from vllm_stack.proxy.worker_records import WorkerRecords, read_records
from vllm_stack.records.drain_order import DrainOrder, read_order
from vllm_stack.terminal_text import printable

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door

# Of all workers together.
_MOST_FAILURES = 50


class Records:
    """What lies on the disk about one server; reading it is nothing for the event loop."""

    def __init__(self, backend: Backend, state: Path) -> None:
        self._state = state
        self._name = backend.name
        self._history = PastFailures(backend.name, failure_history(state, backend.name))
        self.read()

    def read(self) -> None:
        self.wrapper: WorkerRecords = read_records(self._state, self._name)
        self.order: DrainOrder | None = read_order(drain_order(self._state, self._name))
        self.failures: Sequence[PastFailure] = self._history.read()


class StackState:
    """Puts the state together from what the proxy knows, what the workers print, and the records."""

    def __init__(self, door: Door) -> None:
        settings = door.settings
        self._door = door
        self._name = Layout(settings.state.parents[1]).stack_name
        self._started = psutil.Process(os.getppid()).create_time()
        self._records = [Records(backend, settings.state) for backend in door.backends.all]

    def read_records(self) -> None:
        """Look at the disk again."""
        for records in self._records:
            records.read()

    def state(self, scrapes: dict[int, Scrape]) -> dict[str, Any]:
        """Give the state as of now; counters never fall, unless what counts has started anew.

        Times are Unix times, except `at`, which is in seconds on a clock that never jumps.
        """
        door, settings = self._door, self._door.settings
        loads, open_in = door.board.loads(), door.board.open_in()
        tallies = door.board.tally.servers()
        servers = []
        for backend, records in zip(door.backends.all, self._records, strict=True):
            scrape = scrapes.get(backend.index)
            servers.append(
                {
                    "name": backend.name,
                    "address": str(backend.address),
                    "remote": backend.remote,
                    "model": door.backends.models.names[backend.model][0],
                    "gpus": backend.gpus,
                    **_standing(backend, records, loads[backend.index]),
                    "in_flight": loads[backend.index],
                    "open_in": open_in[backend.index],
                    "first_byte": tallies[backend.index].first_byte.counts,
                    "engine": scrape and asdict(read_figures(scrape.text, scrape.at)),
                }
            )
        return {
            "at": time.monotonic(),
            "time": time.time(),
            "version": __version__,
            "stack": self._name,
            "proxy": {
                "started": self._started,
                "processes": settings.processes,
                "waiting": door.board.turns.waiting(),
                "limit": settings.max_inflight,
                "totals": door.board.totals(),
                "answers": _answers(door.board.tally),
            },
            "first_byte_bounds": FIRST_BYTE,
            "servers": servers,
        }

    def failures(self) -> dict[str, Any]:
        """Give the latest failures of all workers, the newest first."""
        every = [failure for records in self._records for failure in records.failures]
        every.sort(key=lambda failure: failure.at, reverse=True)
        return {"failures": [asdict(failure) for failure in every[:_MOST_FAILURES]]}


def _standing(backend: Backend, records: Records, in_flight: int) -> dict[str, Any]:
    note, order, failures = records.wrapper.note, records.order, records.failures
    failed = records.wrapper.failure
    last = failures[-1] if failures else None
    details = [note.detail if note else "", order.story if order else ""]
    return {
        "state": judge_upstream(backend.state, in_flight)
        if backend.remote
        else judge(backend.state, note, failed.at if failed else None, in_flight),
        "since": note.since if note else None,
        "until": note.until if note else None,
        "detail": printable("; ".join(detail for detail in details if detail)),
        "starts": records.wrapper.lives.starts,
        # The count is from the first life on, the history has the last hundred, and either may be lost.
        "failures": max(records.wrapper.lives.failures, len(failures)),
        "last_failure": last
        and {"at": last.at, "how": last.how, "seconds_alive": last.seconds_alive, "cause": last.cause},
    }


def _answers(tally: Tally) -> dict[str, int]:
    """Count the answers by what their status means."""
    found: Counter[str] = Counter()
    for count in tally.counts():
        found[_kind(count.code)] += count.number
    return found


def _kind(code: int) -> str:
    """Name the kind of a status; a client that left was not failed by anybody."""
    if code == CLIENT_LEFT:
        return "left"
    if code >= 500:
        return "server_error"
    return "client_error" if code >= 400 else "good"
