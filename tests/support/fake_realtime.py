"""A stand-in for vLLM's `/v1/realtime`: a real WebSocket server in a process of its own.

    python fake_realtime.py serve MODEL --host H --port P
    python fake_realtime.py serve MODEL --uds PATH

It greets with `session.created`, as vLLM does, and gives every message back, but for the words of
COMMANDS. It asks for VLLM_API_KEY as vLLM's middleware does; `?refuse=STATUS` refuses the WebSocket.
What it saw is told by GET /fake/state.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import signal
import sys
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve, unix_serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

COMMANDS: dict[str, str] = {
    "flood N": "send N messages of MESSAGE bytes, numbered by their first eight",
    "deaf": "read nothing more, for ever",
    "abort": "drop the connection without a word",
    "close": "say a last message, then goodbye",
}
MESSAGE = 64 * 1024


def numbered(number: int) -> bytes:
    return number.to_bytes(8, "big") * (MESSAGE // 8)


class FakeRealtime:
    """What it saw, and how it answers."""

    def __init__(self) -> None:
        self.key = os.environ.get("VLLM_API_KEY", "")
        self.heads: list[dict[str, Any]] = []
        self.open: set[ServerConnection] = set()
        self.opened = self.received = 0

    def state(self) -> dict[str, Any]:
        return {
            "connections_open": len(self.open),  # what the harness asks any worker
            "in_flight": len(self.open),
            "opened": self.opened,
            "received": self.received,
            "heads": self.heads[-20:],
        }

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no WebSocket; None lets one in."""
        path = urlsplit(request.path).path
        if path == "/health":
            return connection.respond(200, "")
        if path == "/fake/state":
            return connection.respond(200, json.dumps(self.state()))
        self.heads.append({"target": request.path, "headers": list(request.headers.raw_items())})
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given, f"Bearer {self.key}"):
            return connection.respond(401, '{"error": "Unauthorized"}')
        if path != "/v1/realtime" or "Upgrade" not in request.headers:
            return connection.respond(404, '{"detail": "Not Found"}')
        if refuse := parse_qs(urlsplit(request.path).query).get("refuse"):
            return connection.respond(int(refuse[0]), "refused by the worker")
        return None

    async def talk(self, connection: ServerConnection) -> None:
        self.open.add(connection)
        self.opened += 1
        try:
            session = {"id": "sess_1", "object": "realtime.session", "type": "realtime"}
            await connection.send(
                json.dumps({"type": "session.created", "event_id": "e1", "session": session})
            )
            async for message in connection:
                self.received += len(message)
                await self.react(connection, message)
        except ConnectionClosed:
            pass
        finally:
            self.open.discard(connection)

    async def react(self, connection: ServerConnection, message: str | bytes) -> None:
        word, _, number = str(message).partition(" ") if isinstance(message, str) else ("", "", "")
        if word == "flood":
            for each in range(int(number)):
                await connection.send(numbered(each))
        elif word == "deaf":
            connection.transport.pause_reading()
            await connection.wait_closed()
        elif word == "abort":
            connection.transport.abort()
        elif word == "close":
            await connection.send("last words")
            await connection.close(4000, "as told")
        else:
            await connection.send(message)


async def main(argv: list[str]) -> None:
    fake = FakeRealtime()
    given = dict(zip(argv[2::2], argv[3::2], strict=True))
    options: dict[str, Any] = {"process_request": fake.answer, "max_size": None, "close_timeout": 1}
    if "--uds" in given:
        server = unix_serve(fake.talk, given["--uds"], **options)
    else:
        server = serve(fake.talk, given["--host"], int(given["--port"]), **options)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with server:
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
