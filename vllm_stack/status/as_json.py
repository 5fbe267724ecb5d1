"""The picture for programs; docs/operating.md describes every field."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vllm_stack.status.picture import Picture, Proxy, Upstream, Worker
from vllm_stack.status.verdict import exit_code, summary


def as_json(picture: Picture) -> dict[str, Any]:
    """Give it in values of JSON: Unix times and seconds, bytes, tokens, shares from 0 to 1."""
    return {
        "at": picture.at,
        "exit_code": exit_code(picture),
        "summary": summary(picture),
        "supervisord": picture.supervisord,
        "proxy": _proxy(picture.proxy),
        "workers": [_worker(worker) for worker in picture.workers],
        "upstreams": [_upstream(upstream) for upstream in picture.upstreams],
        "roll": None if picture.roll is None else asdict(picture.roll),
    }


def _proxy(proxy: Proxy) -> dict[str, Any]:
    first_byte = proxy.first_byte
    return {
        "url": proxy.url,
        "state": proxy.state,
        "since": proxy.since,
        "in_flight": proxy.in_flight,
        "waiting": proxy.waiting,
        "requests_per_second": proxy.rates.requests,
        "errors_per_second": proxy.rates.errors,
        "first_byte_p50": first_byte.quantile(0.5) if first_byte else None,
        "first_byte_p99": first_byte.quantile(0.99) if first_byte else None,
        "totals": dict(proxy.totals),
        "reload_trouble": proxy.reload_trouble,
    }


def _worker(worker: Worker) -> dict[str, Any]:
    figures, progress = worker.figures, worker.progress
    return {
        "name": worker.place.name,
        "model": worker.place.model,
        "address": worker.place.address,
        "gpus": [asdict(gpu) for gpu in worker.gpus],
        "cores": list(worker.place.cores),
        "state": str(worker.state),
        "since": worker.since,
        "until": worker.until,
        "detail": worker.detail,
        "progress": None if progress is None else {"step": progress.step, "percent": progress.percent},
        "ordered_out": None if worker.ordered_out is None else dict(worker.ordered_out),
        "in_flight": worker.in_flight,
        "running": figures.running if figures else None,
        "waiting": figures.waiting if figures else None,
        "tokens_in_per_second": worker.rates.tokens_in,
        "tokens_out_per_second": worker.rates.tokens_out,
        "kv_cache": figures.kv_cache if figures else None,
        "prefix_hit_rate": figures.prefix_hit_rate if figures else None,
        "starts": worker.starts,
        "failures": worker.failures,
        "last_failure": worker.last_failure,
        "failed_at": worker.failed_at,
    }


def _upstream(upstream: Upstream) -> dict[str, Any]:
    return {
        "name": upstream.place.name,
        "model": upstream.place.model,
        "address": upstream.place.address,
        "state": upstream.state,
        "in_flight": upstream.in_flight,
    }
