"""Which failure is tried again where, and what the client is told of it."""

from __future__ import annotations

import json

import pytest

from vllm_stack.proxy.failures import (
    Aborted,
    BadAnswer,
    Broken,
    ConnectFailed,
    Silent,
    StaleConnection,
    UpstreamFailure,
    may_retry,
    refusal_for,
)

FAILURES = (ConnectFailed, StaleConnection, Broken, Aborted, BadAnswer, Silent)


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("resent", [True, False])
def test_what_was_sent_is_sent_once_more_at_most(
    kind: type[UpstreamFailure], inference: bool, resent: bool
) -> None:
    expected = {
        ConnectFailed: True,
        StaleConnection: not resent,
        Broken: inference and not resent,
        Aborted: inference and not resent,
        BadAnswer: False,
        Silent: False,
    }[kind]
    assert may_retry(kind("words"), resent, inference) is expected


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (None, 503, "no_ready_worker"),
        (ConnectFailed("x"), 503, "no_ready_worker"),
        (Silent("x"), 504, "upstream_timeout"),
        (Broken("x"), 502, "upstream_error"),
        (StaleConnection("x"), 502, "upstream_error"),
        (Aborted("x"), 502, "upstream_error"),
        (BadAnswer("x"), 502, "upstream_error"),
    ],
)
def test_every_failure_is_told_in_openai_shape(
    failure: UpstreamFailure | None, status: int, code: str
) -> None:
    refusal = refusal_for(failure, resent=False)
    error = json.loads(refusal.body())["error"]
    assert (refusal.status, error["code"], error["type"]) == (status, code, "server_error")
    assert error.keys() == {"message", "type", "param", "code"}
    assert (dict(refusal.headers).get("retry-after") is not None) is (status == 503)


def test_a_request_that_broke_two_workers_must_not_come_back() -> None:
    assert dict(refusal_for(Broken("x"), resent=True).headers)["x-should-retry"] == "false"


def test_a_request_that_broke_one_worker_may_come_back() -> None:
    assert "x-should-retry" not in dict(refusal_for(Broken("x"), resent=False).headers)
