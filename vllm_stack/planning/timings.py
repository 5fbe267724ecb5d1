"""How long everything waits for everything else; derived in one place, with the reason for each."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timings:
    """Waits in seconds, each derived from what the user set and from what vLLM and gunicorn need."""

    restart_delay: float
    drain_timeout: float

    @property
    def start_seconds(self) -> int:
        """supervisord's startsecs: as long as the delay, so a waiting worker is STARTING, not RUNNING."""
        return max(1, math.ceil(self.restart_delay))

    @property
    def gpu_patience(self) -> int:
        """How long a start waits for the memory of its GPUs.

        A dead engine's is free within seconds; what a stranger holds may be meant so, and vLLM
        itself is the judge then.
        """
        return 60

    @property
    def stop_grace(self) -> float:
        """From TERM to KILL for a vLLM server.

        Its drain, then 5 s for the engine manager and 5 s for its workers
        (VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS), then 5 s of slack.
        """
        return self.drain_timeout + 15

    @property
    def worker_stop_wait(self) -> int:
        """supervisord's stopwaitsecs for a worker: the wrapper must always be the first to kill."""
        return math.ceil(self.stop_grace + 15)

    @property
    def proxy_stop_wait(self) -> int:
        """supervisord's stopwaitsecs for the proxy: gunicorn's graceful_timeout and a little more."""
        return math.ceil(self.drain_timeout + 5)

    @property
    def stop_seconds(self) -> int:
        """The longest that a stop of everything takes: the proxy, and then all workers at once."""
        return self.proxy_stop_wait + self.worker_stop_wait

    @property
    def unit_stop_wait(self) -> int:
        """systemd's TimeoutStopSec: supervisord must always be the first to kill.

        It looks at its programs once a second, and needs some for a machine that is shutting down.
        """
        return self.stop_seconds + 15

    @property
    def worker_keep_alive(self) -> int:
        """How long a worker keeps an idle connection (VLLM_HTTP_TIMEOUT_KEEP_ALIVE, default 5)."""
        return 75

    @property
    def upstream_idle(self) -> int:
        """The same for a server elsewhere, whose patience is not ours to set: vLLM's default is 5 s."""
        return 4

    @property
    def pool_idle(self) -> int:
        """How long the proxy keeps one: shorter, so that it is never the worker who hangs up first."""
        return 60
