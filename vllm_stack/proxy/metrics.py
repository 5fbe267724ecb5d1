"""`GET /metrics` of the admin door: the proxy's own figures, and beside them what every worker tells."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import gevent
from gevent import get_hub
from prometheus_client import generate_latest

from vllm_stack.proxy.admin_answer import Answer
from vllm_stack.proxy.exposition import Family, merge, read_families
from vllm_stack.proxy.own_metrics import OwnMetrics, server_labels
from vllm_stack.proxy.worker_metrics import FRESH, WorkerMetrics
from vllm_stack.proxy.worker_records import WorkerRecords, read_records

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door

METRICS = "/metrics"
_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_log = logging.getLogger("gunicorn.error")


class Metrics:
    """Puts one text together for every scrape."""

    def __init__(self, door: Door, workers: WorkerMetrics) -> None:
        self._door = door
        self._look = workers.look
        self._workers = [backend for backend in door.backends.all if not backend.remote]
        self._labels = [server_labels(door, server) for server in door.backends.all]
        # What was wrong with the metrics of a worker the last time, by its index.
        self._trouble: dict[int, str] = {}

    def page(self) -> Answer:
        """Give the metrics as of now; workers that do not tell theirs cost `PATIENCE` in all, and no more."""
        told = self._of_workers()
        # A disk may be slow, and streams must not wait for it.
        records = get_hub().threadpool.apply(self._read_records)
        own = generate_latest(OwnMetrics(self._door, self._labels, records, told))
        return Answer(own + merge(told.values()).encode(), _TYPE)

    def _of_workers(self) -> dict[int, dict[str, Family]]:
        """Give what the workers tell, by their index; without those whose answer is none, or of before."""
        since = time.monotonic() - FRESH
        told = {}
        for index, scrape in sorted(self._look().items()):
            if scrape.at >= since:
                try:
                    told[index] = read_families(scrape.text.decode(), self._labels[index])
                    trouble = ""
                except ValueError as error:
                    trouble = str(error)
                self._note(index, trouble)
                gevent.sleep(0)  # a millisecond each: streams have their turn between them
        return told

    def _note(self, index: int, trouble: str) -> None:
        """Say what is wrong with the metrics of a worker, once."""
        if trouble and trouble != self._trouble.get(index):
            _log.warning("The metrics of %s are left out: %s", self._door.backends.all[index].name, trouble)
        self._trouble[index] = trouble

    def _read_records(self) -> dict[int, WorkerRecords]:
        state = self._door.settings.state
        return {worker.index: read_records(state, worker.name) for worker in self._workers}
