"""One request of a client, as it is handed through the proxy."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from vllm_stack.proxy.caller import Caller
from vllm_stack.proxy.request_head import RequestHead
from vllm_stack.proxy.request_id import new_id

# Bytes of a body that are held: it can be sent again, and be looked into. A larger one flows, unless
# all of it is needed to choose a worker (`Door.held`).
HELD_BODY = 1024 * 1024
# How an answer ended: to the last byte; with the worker; with the client.
WHOLE, CUT, LEFT = "whole", "cut", "left"
# Bytes from which on a piece of a body is no longer small.
_PIECE = 32 * 1024


class Request:
    """One request, growing as it arrives: the head first, then `complete` with its `body`.

    `length` is that of the body if the head says so, `body_size` what has come of it.
    """

    __slots__ = (
        "began",
        "body",
        "body_size",
        "caller",
        "chunks",
        "complete",
        "cors",
        "end",
        "head",
        "id",
        "length",
        "server",
        "status",
        "tries",
    )

    def __init__(self, head: RequestHead) -> None:
        self.head = head
        # What has come of the body until it is complete.
        self.chunks: list[bytes] = []
        self.body = b""
        self.length: int | None = None
        self.body_size = 0
        self.complete = False
        # Whose it is, as long as it is counted for them.
        self.caller: Caller | None = None
        # What `cors` has the answer say of origins; None where it has no say.
        self.cors: tuple[tuple[str, str], ...] | None = None
        # As the client named it in `x-request-id`, if that is a plain word, else anew.
        self.id = head.given_id or new_id()
        # When its head was here, by `time.monotonic`.
        self.began = monotonic()
        # What became of it: the status of its answer (0 while there is none), how that ended, which server
        # gave it (its index, None: the proxy itself), and how often it was sent to one.
        self.status = 0
        self.end = WHOLE
        self.server: int | None = None
        self.tries = 0

    @property
    def method(self) -> bytes:
        return self.head.method

    @property
    def path(self) -> bytes:
        return self.head.path

    def values(self, name: bytes) -> Sequence[bytes]:
        """Give the values of a header, by its lower-case name, in the order they came."""
        return self.head.values(name)

    def finish(self) -> None:
        """Note that all of it is here."""
        self.complete = True
        self.body = self.take_body()

    def gather(self, since: int) -> None:
        """Join what has come of the body since there were so many pieces of it.

        A client may send a body in pieces of a byte or two, and every piece takes many times that.
        """
        if len(self.chunks) - since > 1:
            self.chunks[since:] = [b"".join(self.chunks[since:])]
        # Small ones are joined with those before that are no larger: each byte is copied a few times.
        while len(self.chunks) > 1 and len(self.chunks[-2]) <= len(self.chunks[-1]) < _PIECE:
            self.chunks[-2:] = [b"".join(self.chunks[-2:])]

    def take_body(self) -> bytes:
        """Give what has come of the body, and forget it."""
        body = b"".join(self.chunks) if self.chunks else self.body
        self.chunks, self.body = [], b""
        return body
