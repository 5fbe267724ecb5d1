"""The admin door: a small read-only WSGI application for this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import gevent

from vllm_stack.proxy.admin_answer import GUARD, Answer, in_json, is_here
from vllm_stack.proxy.dashboard.dashboard import Dashboard
from vllm_stack.proxy.metrics import METRICS, Metrics
from vllm_stack.proxy.tally import DURATION, FIRST_BYTE
from vllm_stack.proxy.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from vllm_stack.proxy.door import Door
    from vllm_stack.proxy.hooks import Reloads

# RFC 9110 section 15.5.6: who refuses a method says which there are.
_ALLOW = (("Allow", "GET, HEAD"),)
# Keys that are counted before streams have their turn.
_KEYS_AT_A_TIME = 100

_door: Door | None = None
_reloads: Reloads | None = None
_dashboard: Dashboard | None = None
_metrics: Metrics | None = None


def attach(door: Door, reloads: Reloads) -> None:
    """Show this process's door from now on."""
    global _door, _reloads, _dashboard, _metrics
    _door, _reloads = door, reloads
    workers = WorkerMetrics(door.backends.all)
    _dashboard, _metrics = Dashboard(door, workers), Metrics(door, workers)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer a GET of one of `_PAGES`, or of the dashboard."""
    answer = _answer(environ)
    length = ("Content-Length", str(len(answer.body)))
    start_response(answer.status, [("Content-Type", answer.kind), length, *answer.headers, *GUARD])
    return [answer.body]


def _answer(environ: dict[str, Any]) -> Answer:
    if not is_here(environ.get("HTTP_HOST")):
        return in_json({"error": "ask for 127.0.0.1 or localhost, by any port"}, "421 Misdirected Request")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return in_json({"error": "read-only"}, "405 Method Not Allowed")._replace(headers=_ALLOW)
    path = environ["PATH_INFO"]
    if _door is not None and (page := _PAGES.get(path)):
        said = page(_door)
        return said if isinstance(said, Answer) else in_json(said)
    if _metrics is not None and path == METRICS:
        return _metrics.page()
    if _dashboard is not None and (shown := _dashboard.page(path)):
        return shown(environ["QUERY_STRING"])
    return in_json({"error": f"try / or {' or '.join((METRICS, *_PAGES))}"}, "404 Not Found")


def _workers(door: Door) -> dict[str, Any]:
    """Tell what is known of every worker, how many requests wait, and the totals."""
    loads, open_in = door.board.loads(), door.board.open_in()
    workers = [
        {
            "name": backend.name,
            "address": str(backend.address),
            "model": door.backends.models.names[backend.model][0],
            "ready": backend.ready,
            "state": backend.state,
            "in_flight": loads[backend.index],
            "open_in": open_in[backend.index],  # processes of the proxy that send to it
        }
        for backend in door.backends.all
    ]
    return {
        "workers": workers,
        "waiting": door.board.turns.waiting(),
        "totals": door.board.totals(),
        "reloads": _reloads and {"count": _reloads.count, "trouble": _reloads.trouble},
    }


def _keys_seen(door: Door) -> dict[str, Any]:
    """Tell by which generation of the file of named keys each process goes."""
    keys = door.keys
    return {"file": str(keys.file), "required": keys.required, "generations": keys.usage.seen()}


def _keys(door: Door) -> dict[str, Any]:
    """Tell that, and what every key has used."""
    usage = door.keys.usage
    used = []
    for number, caller in enumerate(door.keys.callers):
        if number % _KEYS_AT_A_TIME == 0:
            gevent.sleep(0)
        used.append({"name": caller.name, **usage.totals(caller.slot)})
    return {**_keys_seen(door), "keys": used}


def _traffic(door: Door) -> dict[str, Any]:
    """Tell what became of all requests that ended; last come the answers of the proxy itself."""
    names = [*(backend.name for backend in door.backends.all), "proxy"]
    return {
        "requests": [count._asdict() for count in door.board.tally.counts()],
        "first_byte_bounds": FIRST_BYTE,
        "duration_bounds": DURATION,
        "servers": [
            {
                "name": name,
                "itself": name == names[-1],
                "first_byte": tally.first_byte._asdict(),
                "duration": tally.duration._asdict(),
                "bytes_in": tally.bytes_in,
                "bytes_out": tally.bytes_out,
            }
            for name, tally in zip(names, door.board.tally.servers(), strict=True)
        ],
    }


_PAGES: dict[str, Callable[[Door], dict[str, Any] | Answer]] = {
    "/workers": _workers,
    "/traffic": _traffic,
    "/keys": _keys,
    "/keys/seen": _keys_seen,
}
