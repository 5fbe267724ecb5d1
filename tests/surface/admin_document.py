"""What the admin door answers, as docs/dashboard.md, docs/metrics.md and docs/keys.md promise it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.surface.openapi import (
    BOOLEAN,
    COUNT,
    JSON,
    METHODS,
    NUMBER,
    TEXT,
    WITH_BODY,
    Schema,
    answer,
    counts,
    document,
    each,
    in_query,
    maybe,
    one_of,
    operation,
    said,
    shape,
)

# On every answer: other web pages get nothing (docs/dashboard.md, "Who can see it").
GUARD: dict[str, Schema] = {
    "Cache-Control": said("no-store"),
    "Content-Security-Policy": {"type": "string", "pattern": "^default-src 'none'; .*frame-ancestors 'none'"},
    "Cross-Origin-Opener-Policy": said("same-origin"),
    "Cross-Origin-Resource-Policy": said("same-origin"),
    "Referrer-Policy": said("no-referrer"),
    "X-Content-Type-Options": said("nosniff"),
    "X-Frame-Options": said("DENY"),
}
MOST_LINES = 500
ERROR = shape(error={"type": "string", "minLength": 1})
# Once more and not the proxy's own list: whoever renames one of them takes it from those who read it.
TOTALS = (
    "requests",
    "refused",
    "waited",
    "retries_connect",
    "retries_stale",
    "retries_broken",
    "retries_abort",
    "retries_elsewhere",
    "aborts",
    "failures",
    "client_gone",
    "unlogged",
)
WORKERS = shape(
    workers=each(
        shape(
            name=TEXT,
            address=TEXT,
            model=TEXT,
            ready=BOOLEAN,
            state=TEXT,
            in_flight=COUNT,
            open_in=COUNT,
        ),
        least=1,
    ),
    waiting=COUNT,
    totals=counts(TOTALS),
    reloads=shape(count=COUNT, trouble=maybe(TEXT)),
)
_HISTOGRAM = shape(counts=each(COUNT), sum=NUMBER)
TRAFFIC = shape(
    requests=each(shape(route=TEXT, method=TEXT, code=COUNT, number=COUNT)),
    first_byte_bounds=each(NUMBER),
    duration_bounds=each(NUMBER),
    servers=each(
        shape(
            name=TEXT,
            itself=BOOLEAN,
            first_byte=_HISTOGRAM,
            duration=_HISTOGRAM,
            bytes_in=COUNT,
            bytes_out=COUNT,
        ),
        least=2,
    ),
)
_SEEN: dict[str, Schema] = {"file": TEXT, "required": BOOLEAN, "generations": each({"type": "integer"})}
KEYS = shape(**_SEEN, keys=each(shape(name=TEXT, requests=COUNT, limited=COUNT, in_flight=COUNT)))
_ENGINE = shape(
    at=NUMBER,
    **dict.fromkeys(
        (
            "running",
            "waiting",
            "kv_cache",
            "prompt_tokens",
            "generation_tokens",
            "prefix_queries",
            "prefix_hits",
        ),
        maybe(NUMBER),
    ),
)
STATE = shape(
    at=NUMBER,
    time=NUMBER,
    version=TEXT,
    stack=TEXT,
    proxy=shape(
        started=NUMBER,
        processes=COUNT,
        waiting=COUNT,
        limit=maybe(COUNT),
        totals=counts(TOTALS),
        answers=counts(),
    ),
    first_byte_bounds=each(NUMBER),
    servers=each(
        shape(
            name=TEXT,
            address=TEXT,
            remote=BOOLEAN,
            model=TEXT,
            gpus=each({}),
            state=TEXT,
            since=maybe(NUMBER),
            until=maybe(NUMBER),
            detail=TEXT,
            starts=COUNT,
            failures=COUNT,
            last_failure=maybe(shape(at=NUMBER, how=TEXT, seconds_alive=NUMBER, cause=maybe(TEXT))),
            in_flight=COUNT,
            open_in=COUNT,
            first_byte=each(COUNT),
            engine=maybe(_ENGINE),
        ),
        least=1,
    ),
)
FAILURES = shape(
    failures=each(
        shape(
            worker=TEXT,
            at=NUMBER,
            how=TEXT,
            phase=TEXT,
            seconds_alive=NUMBER,
            cause=maybe(TEXT),
            evidence=maybe(TEXT),
            lines=each(TEXT),
        )
    )
)
PAGES: dict[str, tuple[Schema, str]] = {
    "/": (TEXT, "text/html"),
    "/dashboard/main.js": (TEXT, "text/javascript"),
    "/dashboard/page.css": (TEXT, "text/css"),
    "/dashboard/icon.svg": (TEXT, "image/svg+xml"),
    "/failures": (FAILURES, JSON),
    "/keys": (KEYS, JSON),
    "/keys/seen": (shape(**_SEEN), JSON),
    "/metrics": (TEXT, "text/plain"),
    "/state": (STATE, JSON),
    "/traffic": (TRAFFIC, JSON),
    "/workers": (WORKERS, JSON),
}


def admin_document(logs: Sequence[str]) -> dict[str, Any]:
    """Describe the admin door of a stack that has these logs."""
    # An empty field is none, as in every form.
    lines = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_LINES}, said("")]}
    asked = [in_query("worker", one_of(logs), required=True), in_query("lines", lines)]
    error = answer(ERROR, headers=GUARD)
    # gunicorn's own page: what it does not read never comes to ours.
    too_long = {414: answer(TEXT, "text/html")}
    gets = {
        **{path: operation({200: answer(schema, kind, GUARD)}) for path, (schema, kind) in PAGES.items()},
        "/logs": operation({200: answer(TEXT, "text/plain", GUARD), 404: error, **too_long}, asked),
        "/nothing/{of}/{this}": operation({404: error, **too_long}, [_in_path("of"), _in_path("this")]),
    }
    read_only = {405: answer(ERROR, headers={**GUARD, "Allow": said("GET, HEAD")}), **too_long}
    return document(
        "The admin door",
        {path: {"get": get, **_others(read_only, get["parameters"])} for path, get in gets.items()},
    )


def _others(answers: dict[int, dict[str, Any]], parameters: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The door is read-only: every other method gets the same answer."""
    return {
        method: operation(answers, parameters, method in WITH_BODY) for method in METHODS if method != "get"
    }


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
