"""Answers the proxy gives by itself: a refusal of the client's request, in OpenAI's shape."""

from __future__ import annotations

from http import HTTPStatus

from vllm_stack.openai import INVALID_REQUEST, error_body

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class Refusal(Exception):
    """A request that gets an error answer.

    `close` says that the connection cannot go on: its framing is lost, or its body was not read.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.param = param
        self.headers = headers
        self.close = close

    def body(self) -> bytes:
        return error_body(str(self), self.kind, self.code, self.param)


def answer(
    status: int,
    body: bytes,
    *,
    content_type: str = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
    keep_alive: bool,
    head_only: bool = False,
) -> bytes:
    """Give one whole answer of our own, ready to send."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}",
        # RFC 9110 section 8.6: a 204 has no length, not even 0.
        *((f"content-type: {content_type}", f"content-length: {len(body)}") if status != 204 else ()),
        *(f"{name}: {value}" for name, value in headers),
    ]
    if not keep_alive:
        lines.append("connection: close")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + body
