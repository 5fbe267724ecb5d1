"""A door to which made-up requests go, byte by byte, and what its scripted workers saw of them."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from typing import Any

import requests
from schemathesis import Case, Response

from tests.integration.proxy.harness import Answer, ScriptedWorker, Stack, Wire

_HOST = "http://door"
# What a connection that goes on serves next.
THEN = b"GET /livez HTTP/1.1\r\nhost: door\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-\"$-~]*) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ([^\x00-\x08\x0a-\x1f\x7f]*)")


@dataclass(frozen=True)
class Said:
    """A sane answer of a worker, and how it frames it."""

    status: int
    kind: str
    body: bytes
    chunks: int = 0  # with none it has a length

    @property
    def data(self) -> bytes:
        head = f"HTTP/1.1 {self.status} Said\r\ncontent-type: {self.kind}\r\n"
        if not self.chunks:
            return f"{head}content-length: {len(self.body)}\r\n\r\n".encode() + self.body
        size = -(-len(self.body) // self.chunks)
        pieces = [self.body[start : start + size] for start in range(0, len(self.body), size)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])
        return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + framed


@dataclass(frozen=True)
class Seen:
    """A request as a worker got it, which is well-formed in every way; AssertionError for any other."""

    worker: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @classmethod
    def read(cls, worker: int, data: bytes) -> Seen:
        head, end, body = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        line = _REQUEST_LINE.fullmatch(first)
        fields = [_FIELD.fullmatch(line) for line in lines]
        assert end, data
        assert line, first
        assert all(fields), lines
        pairs = [(field[1].decode().lower(), field[2].decode("latin-1")) for field in fields if field]
        assert len(dict(pairs)) == len(pairs), lines
        headers = dict(pairs)
        assert "host" in headers, lines
        assert "transfer-encoding" not in headers, lines
        assert int(headers.get("content-length", 0)) == len(body), lines
        return cls(worker, line[1].decode(), line[2].decode(), headers, body)


def prepare(case: Case[Any]) -> requests.PreparedRequest:
    """Write a case as schemathesis sends it, with everything but its key and its Host."""
    return requests.Request(**case.as_transport_kwargs(base_url=_HOST)).prepare()


def body_of(request: requests.PreparedRequest) -> bytes:
    body = request.body or b""
    return body.encode() if isinstance(body, str) else body


def spell(request: requests.PreparedRequest, host: str = "door", **more: str) -> bytes:
    """Give the bytes of a request; `x_name` adds the header x-name."""
    fields = {"host": host, **dict(request.headers), **{n.replace("_", "-"): v for n, v in more.items()}}
    head = [f"{request.method} {request.path_url} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body_of(request)


def ask(wire: Wire, data: bytes, then: bytes = THEN) -> Answer:
    """Get one well-formed answer, and nothing behind it: the connection ends, or serves what comes `then`."""
    answer = wire.send(data).answer()
    assert answer.whole, data
    if answer.header("connection") == "close":
        assert wire.ended(), data
    else:
        assert wire.send(then).answer().status == 200, data
        assert not wire.buffered, data
    return answer


def to_check(answer: Answer, request: requests.PreparedRequest) -> Response:
    """Give an answer as the checks of schemathesis take it."""
    headers: dict[str, list[str]] = {}
    for name, value in answer.headers:
        headers.setdefault(name, []).append(value)
    return Response(answer.status, headers, answer.body, request, elapsed=0.0, verify=False)


class Door:
    """The public door of a stack whose workers are scripted."""

    def __init__(self, stack: Stack, workers: list[ScriptedWorker]) -> None:
        self.stack = stack
        self._workers = workers
        self._internal = (stack.out / "secrets/internal-key").read_text().strip()

    def ask(self, data: bytes, said: Said | None = None) -> tuple[Answer, list[Seen]]:
        """Ask, with workers that answer what is `said`; gives the answer, and what the workers saw.

        Where nothing is said no worker should be asked, and one that is hangs up.
        """

        def play(sock: socket.socket, seen: bytes) -> bool:
            if said is not None:
                sock.sendall(said.data)
            return said is not None

        for worker in self._workers:
            worker.requests.clear()
            worker.play = play
        with self.stack.wire() as wire:
            answer = ask(wire, data)
        seen = [
            Seen.read(index, raw) for index, worker in enumerate(self._workers) for raw in worker.requests
        ]
        for one in seen:
            assert one.headers.get("authorization") == f"Bearer {self._internal}", data
            assert "x-api-key" not in one.headers, data
        return answer, seen
