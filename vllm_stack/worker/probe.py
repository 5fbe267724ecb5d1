"""Looking at a server from outside: its health, what it has in flight, and how far its engine is."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass
from typing import Any

from vllm_stack.address import Address, TcpAddress
from vllm_stack.local_http import fetch

TIMEOUT = 5.0
HEALTH = "/health"
# A step of the engine, whatever it computed (vllm/v1/metrics/loggers.py).
_STEPS = re.compile(rb"^vllm:iteration_tokens_total_count(?:\{[^}\n]*\})? ([0-9.eE+]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Probe:
    """Asks one server, and the proxy in front of it; every question ends within `timeout` seconds."""

    name: str
    address: Address
    admin_port: int
    timeout: float = TIMEOUT
    path: str = HEALTH

    def health(self) -> str | None:
        """Give None if the server says it is well, otherwise what is wrong in a few words."""
        try:
            status, _ = fetch(self.address, self.path, self.timeout)
        except (ConnectionRefusedError, FileNotFoundError):  # no port, no socket
            return "refuses connections"
        except TimeoutError:
            return "does not answer"
        except (OSError, http.client.HTTPException) as error:
            return f"answers nothing of use ({error})"
        return None if status == 200 else f"answers {status}"

    def in_flight(self) -> int:
        """Count the requests this server works on: 0 unless both it and the proxy know of some.

        `num_requests_running` is no witness: it stays at 0 when the engine hangs in its first step.
        The server's own count (`/load`) is; but should it ever miss the end of a request, the
        proxy's leases say that nobody waits. While the proxy is away the server's count stands.
        """
        load = _number(self._json(self.address, "/load").get("server_load"))
        if not load:
            return 0
        leases = self._leases()
        return load if leases is None else min(load, leases)

    def _leases(self) -> int | None:
        """Count the requests the proxy has given to this server; None while it does not tell."""
        workers = self._json(TcpAddress("127.0.0.1", self.admin_port), "/workers").get("workers")
        for worker in workers if isinstance(workers, list) else ():
            if isinstance(worker, dict) and worker.get("name") == self.name:
                return _number(worker.get("in_flight"))
        return None

    def _json(self, address: Address, path: str) -> dict[str, Any]:
        try:
            status, body = fetch(address, path, self.timeout)
            value = json.loads(body) if status == 200 else None
        except (OSError, http.client.HTTPException, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def metrics(self) -> bytes:
        """Give the server's metrics as it prints them, nothing if it does not."""
        try:
            status, body = fetch(self.address, "/metrics", self.timeout)
        except (OSError, http.client.HTTPException):
            return b""
        return body if status == 200 else b""


def engine_steps(metrics: bytes) -> float | None:
    """Count the steps all engines of a server have made, None if its metrics do not tell."""
    counts = [float(count) for count in _STEPS.findall(metrics)]
    return sum(counts) if counts else None


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
