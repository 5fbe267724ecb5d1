"""What the dashboard asks of one process of the proxy: its page, the state, the failures, the logs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gevent import get_hub
from gevent.lock import BoundedSemaphore

from vllm_stack.layout import Layout
from vllm_stack.proxy.admin_answer import TEXT, Answer, in_json
from vllm_stack.proxy.dashboard.files import read_files
from vllm_stack.proxy.dashboard.log_page import UnknownLog, asked_log, read_log
from vllm_stack.proxy.dashboard.state import StackState

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door
    from vllm_stack.proxy.worker_metrics import WorkerMetrics

# Seconds. Many open pages cost one look a second; a worker that hangs holds none of them up for longer.
_FRESH = 1.0
_PATIENCE = 0.5


class Dashboard:
    """Answers by path; files are read in a thread, because streams must not wait for a disk."""

    def __init__(self, door: Door, metrics: WorkerMetrics) -> None:
        layout = Layout(door.settings.state.parents[1])
        programs = [backend.name for backend in door.backends.all if not backend.remote]
        self._logs = {name: layout.log(name) for name in (*programs, "proxy", "supervisord")}
        self._metrics = metrics
        self._stack = StackState(door)
        self._looking = BoundedSemaphore()
        self._looked = float("-inf")
        self._state = Answer(b"")
        self._files = read_files()

    def page(self, path: str) -> Callable[[str], Answer] | None:
        """Give what answers a query for this path, None if there is nothing there."""
        if path in self._files:
            return lambda query: self._files[path]
        return {"/state": self._show_state, "/failures": self._show_failures, "/logs": self._show_log}.get(
            path
        )

    def _show_state(self, query: str) -> Answer:
        self._look()
        return self._state

    def _show_failures(self, query: str) -> Answer:
        self._look()
        return in_json(self._stack.failures())

    def _show_log(self, query: str) -> Answer:
        try:
            asked = asked_log(query, self._logs)
        except UnknownLog as error:
            return in_json({"error": str(error)}, "404 Not Found")
        return Answer(get_hub().threadpool.apply(read_log, asked), TEXT)

    def _look(self) -> None:
        """Look again, unless that was done just now; who comes meanwhile waits for it."""
        with self._looking:
            if time.monotonic() - self._looked < _FRESH:
                return
            get_hub().threadpool.apply(self._stack.read_records)
            self._state = in_json(self._stack.state(self._metrics.look(_PATIENCE)))
            self._looked = time.monotonic()
