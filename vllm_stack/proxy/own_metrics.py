"""The proxy's own metrics, over all of its processes, for the admin door's `GET /metrics`.

They are read out of the memory that the processes share, so nothing of this costs a request anything, and a
process that was killed takes none of them along. Names and labels are told in docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import gevent
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vllm_stack import __version__
from vllm_stack.proxy.backends import Backend
from vllm_stack.proxy.dashboard.standing import judge, judge_upstream
from vllm_stack.proxy.tally import DURATION, FIRST_BYTE, Histogram, ServerTally
from vllm_stack.proxy.worker_records import LastFailure, WorkerRecords

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door

_SERVER = ("worker", "gpu", "model")
_RETRY = "retries_"
_TOTALS = {
    "refused": "Requests that the proxy refused itself.",
    "waited": "Requests that found no worker free, and waited for one.",
    "aborts": "Answers that a worker aborted although nobody had asked it to.",
    "failures": "Requests that failed because of a worker, after all retries.",
    "client_gone": "Clients that left before their answer had ended.",
    "unlogged": "Requests whose line in the access log could not be written.",
}
# Keys that are counted before others have their turn.
_KEYS_AT_A_TIME = 100


def server_labels(door: Door, server: Backend) -> dict[str, str]:
    """Give what says of a sample which server it is about."""
    model = door.backends.models.names[server.model][0]
    return {"worker": server.name, "gpu": ",".join(server.gpus), "model": model}


class OwnMetrics(Collector):
    """One look at them.

    `labels` says of each server which one it is, `records` are what lies on the disk about a worker, by its
    index, and `scraped` the indices of the workers whose own metrics are told, too.
    """

    def __init__(
        self,
        door: Door,
        labels: Sequence[Mapping[str, str]],
        records: Mapping[int, WorkerRecords],
        scraped: Collection[int],
    ) -> None:
        self._door = door
        self._board = door.board
        self._servers = door.backends.all
        self._workers = [backend for backend in self._servers if not backend.remote]
        self._labels = labels
        self._records = records
        self._scraped = scraped

    def collect(self) -> Iterator[Metric]:
        """Give every family; streams have their turn between them."""
        for part in (self._proxy, self._requests, self._timings, self._load, self._standing, self._lives):
            for family in part():
                yield family
                gevent.sleep(0)
        yield from self._keys()

    def _proxy(self) -> Iterator[Metric]:
        build = InfoMetricFamily("vllm_stack_build", "What runs here.")
        build.add_metric((), {"version": __version__, "vllm": self._door.settings.vllm_version or ""})
        yield build
        yield GaugeMetricFamily(
            "vllm_stack_proxy_processes",
            "Processes of the proxy, those included that retire after a reload.",
            len(self._door.keys.usage.seen()),
        )
        reloads = "How often the proxy was told to reload."
        yield CounterMetricFamily("vllm_stack_reloads", reloads, self._board.reloads)

    def _requests(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "vllm_stack_requests",
            "Requests that have ended; code 499: the client left before it had an answer.",
            labels=("route", "method", "code"),
        )
        for count in self._board.tally.counts():
            requests.add_metric((count.route, count.method, str(count.code)), count.number)
        yield requests
        totals = self._board.totals()
        retries = CounterMetricFamily(
            "vllm_stack_retries",
            "Requests that were sent to a worker once more, by what became of the try before.",
            labels=("reason",),
        )
        for name, number in totals.items():
            if name.startswith(_RETRY):
                retries.add_metric((name.removeprefix(_RETRY),), number)
        yield retries
        for name, what in _TOTALS.items():
            yield CounterMetricFamily(f"vllm_stack_{name}", what, totals[name])

    def _timings(self) -> Iterator[Metric]:
        tallies = self._board.tally.servers()
        yield self._histogram(
            "vllm_stack_first_byte_seconds",
            "From the head of a request to the first byte of its answer to the client.",
            FIRST_BYTE,
            [tally.first_byte for tally in tallies],
        )
        yield self._histogram(
            "vllm_stack_duration_seconds",
            "From the head of a request to the end of its answer.",
            DURATION,
            [tally.duration for tally in tallies],
        )
        yield self._bytes(tallies)

    def _histogram(
        self, name: str, what: str, bounds: Sequence[float], histograms: Sequence[Histogram]
    ) -> Metric:
        family = HistogramMetricFamily(name, what, labels=_SERVER)
        words = [*map(str, bounds), "+Inf"]
        # The last one is of what the proxy answered itself.
        for server, histogram in zip(self._servers, histograms, strict=False):
            buckets = list(zip(words, accumulate(histogram.counts), strict=True))
            family.add_metric(tuple(self._labels[server.index].values()), buckets, histogram.sum)
        return family

    def _bytes(self, tallies: Sequence[ServerTally]) -> Metric:
        family = CounterMetricFamily(
            "vllm_stack_body_bytes",
            "Bytes of the bodies of requests (in), and of the answers sent to clients (out).",
            labels=(*_SERVER, "direction"),
        )
        for server, tally in zip(self._servers, tallies, strict=False):
            place = self._labels[server.index].values()
            family.add_metric((*place, "in"), tally.bytes_in)
            family.add_metric((*place, "out"), tally.bytes_out)
        return family

    def _load(self) -> Iterator[Metric]:
        loads, processes = self._board.loads(), self._board.open_in()
        yield self._gauge(
            "in_flight", "Requests that a server works on.", self._servers, lambda s: loads[s.index]
        )
        yield self._gauge(
            "open_processes",
            "Processes of the proxy that send requests to a server.",
            self._servers,
            lambda server: processes[server.index],
        )
        waiting = "Requests that wait for a worker that is free."
        yield GaugeMetricFamily("vllm_stack_waiting", waiting, self._board.turns.waiting())

    def _standing(self) -> Iterator[Metric]:
        open_in = self._board.open_in()
        yield self._gauge(
            "worker_ready",
            "Whether requests go to a server.",
            self._servers,
            lambda server: bool(open_in[server.index]),
        )
        state = GaugeMetricFamily(
            "vllm_stack_worker_state", "1 for the state that a server is in.", labels=(*_SERVER, "state")
        )
        for server in self._servers:
            seen = "ready" if open_in[server.index] else server.state
            state.add_metric((*self._labels[server.index].values(), self._word(server, seen)), 1)
        yield state
        yield self._gauge(
            "worker_scrape_up",
            "Whether the worker's own metrics are among these.",
            self._workers,
            lambda worker: worker.index in self._scraped,
        )

    def _word(self, server: Backend, seen: str) -> str:
        if server.remote:
            return judge_upstream(seen)
        records = self._records[server.index]
        return judge(seen, records.note, records.failure.at if records.failure else None)

    def _lives(self) -> Iterator[Metric]:
        records = self._records
        starts = "How often the worker's server was started, ever."
        yield self._counter("worker_starts", starts, lambda worker: records[worker.index].lives.starts)
        failures = "How often it has ended without being asked to, ever."
        yield self._counter("worker_failures", failures, lambda worker: records[worker.index].lives.failures)
        failed = {w.index: failure for w in self._workers if (failure := records[w.index].failure)}
        yield self._gauge(
            "worker_last_failure_timestamp_seconds",
            "When the worker failed last, since it was stopped on purpose; seconds since 1970.",
            [worker for worker in self._workers if worker.index in failed],
            lambda worker: failed[worker.index].at,
        )
        yield self._causes(failed)

    def _causes(self, failed: Mapping[int, LastFailure]) -> Metric:
        last = InfoMetricFamily(
            "vllm_stack_worker_last_failure", "How the worker's server ended then, and why.", labels=_SERVER
        )
        for worker in self._workers:
            if failure := failed.get(worker.index):
                why = {"how": failure.how, "cause": failure.cause}
                last.add_metric(tuple(self._labels[worker.index].values()), why)
        return last

    def _keys(self) -> Iterator[Metric]:
        """Give what keys have used; one that was never used has no line."""
        requests = CounterMetricFamily("vllm_stack_key_requests", "Requests with a key.", labels=("key",))
        limited = CounterMetricFamily(
            "vllm_stack_key_limited", "Requests that a limit of their key refused.", labels=("key",)
        )
        flight = GaugeMetricFamily(
            "vllm_stack_key_in_flight", "Requests with a key that are in flight.", labels=("key",)
        )
        for number, caller in enumerate(self._door.keys.callers):
            if number % _KEYS_AT_A_TIME == 0:
                gevent.sleep(0)
            used = self._door.keys.usage.totals(caller.slot)
            if any(used.values()):
                requests.add_metric((caller.name,), used["requests"])
                limited.add_metric((caller.name,), used["limited"])
                flight.add_metric((caller.name,), used["in_flight"])
        yield from (requests, limited, flight)

    def _gauge(
        self, name: str, what: str, servers: Iterable[Backend], value: Callable[[Backend], float]
    ) -> Metric:
        family = GaugeMetricFamily(f"vllm_stack_{name}", what, labels=_SERVER)
        for server in servers:
            family.add_metric(tuple(self._labels[server.index].values()), value(server))
        return family

    def _counter(self, name: str, what: str, value: Callable[[Backend], float]) -> Metric:
        family = CounterMetricFamily(f"vllm_stack_{name}", what, labels=_SERVER)
        for worker in self._workers:
            family.add_metric(tuple(self._labels[worker.index].values()), value(worker))
        return family
