"""What can go wrong between the proxy and a worker, and the one place where it becomes a status."""

from __future__ import annotations

from vllm_stack.openai import RATE_LIMIT, SERVER_ERROR
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.scoreboard import (
    RETRIES_ABORT,
    RETRIES_BROKEN,
    RETRIES_CONNECT,
    RETRIES_ELSEWHERE,
    RETRIES_STALE,
)


class UpstreamFailure(Exception):
    """A worker did not give an answer that can be passed on."""

    # May the request be sent to another worker, whatever its route?
    unsent = False


class ConnectFailed(UpstreamFailure):
    """Nothing was sent: the worker does not listen (it is loading, or gone)."""

    unsent = True


class NotHere(UpstreamFailure):
    """The worker does not know the response that the request names; another one may."""

    unsent = True


class Unavailable(UpstreamFailure):
    """A server elsewhere answered 503 to a request that may be sent again: it has no worker ready."""

    unsent = True


class Full(UpstreamFailure):
    """Nothing was sent: every worker that is ready has all the requests it may have."""

    unsent = True


class StaleConnection(UpstreamFailure):
    """A connection kept from an earlier request ended before a byte of the answer."""


class Broken(UpstreamFailure):
    """A fresh connection ended after the request was sent, before a whole answer was there."""


class Aborted(UpstreamFailure):
    """The worker answered `finish_reason: "abort"`, which no client had asked for (vllm#57082)."""


class BadAnswer(UpstreamFailure):
    """The worker's answer is not HTTP that can be passed on."""


class Silent(UpstreamFailure):
    """The worker said nothing for longer than the response timeout."""


class Stopping(UpstreamFailure):
    """The proxy itself is shutting down, and its patience is over."""

    def __init__(self) -> None:
        super().__init__("The server is shutting down")


class ClientGone(Exception):
    """The client hung up, or took nothing for too long: nobody is left to answer."""


class Cut(Exception):
    """An answer broke after it had begun: its connection ends with it."""


_RETRY_SOON = (("retry-after", "5"),)


def may_retry(failure: UpstreamFailure, resent: bool, inference: bool) -> bool:
    """Decide whether a request may go to another worker.

    What was never sent may always, and what the worker knew nothing of. What was sent may once: on
    inference routes, or where a kept connection had died under it. One re-send in all, so that a
    request that kills its worker can take down two at most.
    """
    if failure.unsent:
        return True
    if resent:
        return False
    return isinstance(failure, StaleConnection) or (inference and isinstance(failure, Broken | Aborted))


# What a further try is counted as, by what became of the one before.
_RETRY_COUNTS: tuple[tuple[type[UpstreamFailure], int], ...] = (
    (ConnectFailed, RETRIES_CONNECT),
    (StaleConnection, RETRIES_STALE),
    (Broken, RETRIES_BROKEN),
    (Aborted, RETRIES_ABORT),
)


def retry_count(failure: UpstreamFailure) -> int:
    """Name the counter of a retry after this failure, by its place in `scoreboard.TOTALS`."""
    return next((total for kind, total in _RETRY_COUNTS if isinstance(failure, kind)), RETRIES_ELSEWHERE)


def refusal_for(failure: UpstreamFailure | None, resent: bool) -> Refusal:
    """Give the answer the client gets for a failure; None means that no worker was ready."""
    if failure is None or isinstance(failure, ConnectFailed | NotHere | Unavailable):
        message = "No worker is ready to answer; they may be loading the model"
        return Refusal(
            503,
            "no_ready_worker",
            failure.args[0] if isinstance(failure, NotHere) else message,
            kind=SERVER_ERROR,
            headers=_RETRY_SOON,
        )
    if isinstance(failure, Full):
        return Refusal(429, "queue_full", failure.args[0], kind=RATE_LIMIT, headers=_RETRY_SOON)
    if isinstance(failure, Stopping):
        return Refusal(503, "shutting_down", failure.args[0], kind=SERVER_ERROR, headers=_RETRY_SOON)
    if isinstance(failure, Silent):
        return Refusal(504, "upstream_timeout", "The worker did not answer in time", kind=SERVER_ERROR)
    # Two workers broke on this one: a client that tries again would only break more.
    headers = (("x-should-retry", "false"),) if resent else ()
    return Refusal(502, "upstream_error", failure.args[0], kind=SERVER_ERROR, headers=headers)
