"""The public door as a client finds it, and the admin door beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_stack.address import seen_from_here
from vllm_stack.drill.answer import Ending, judge_answer
from vllm_stack.errors import StackError

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
_PATIENCE = 60.0  # seconds for a question before the drill; a first request may compile something
_LOOK_PATIENCE = 5.0


@dataclass(frozen=True, slots=True)
class Door:
    """Where the public door is, and the key it is shown."""

    scheme: str
    host: str
    port: int
    key: str | None = None

    def connect(
        self, timeout: float, opened: Callable[[socket.socket], None] = lambda _: None
    ) -> http.client.HTTPConnection:
        """Open a connection of its own; `timeout` (seconds) is for each wait on it.

        `opened` gets its socket as soon as there is one, before the TLS handshake: whoever shuts it
        down ends any wait on it. Raises `OSError`.
        """
        host = seen_from_here(self.host)
        sock: socket.socket = socket.create_connection((host, self.port), timeout)
        opened(sock)
        try:
            if self.scheme == "https":
                tls = _unverified().wrap_socket(sock, do_handshake_on_connect=False)
                sock = tls
                opened(sock)
                tls.do_handshake()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(host, self.port, timeout=timeout)
        connection.sock = sock
        return connection

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return {"content-type": "application/json", **key}


def _unverified() -> ssl.SSLContext:
    """What we connect to is the very address that the stack's proxy is bound to on this machine.

    The certificate is for whatever name clients know it by, and often its own issuer.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class Requests:
    """What the drill asks for: short completions of a prompt that is new each time.

    New, so that a policy that keeps conversations together spreads them over all workers.
    """

    path: str
    model: str
    max_tokens: int

    def body(self, prompt: str, stream: bool) -> bytes:
        if self.path == CHAT:
            asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        else:
            asked = {"prompt": prompt}
        told = {"model": self.model, "max_tokens": self.max_tokens, "stream": stream}
        return json.dumps({**told, **asked}).encode()


def choose_requests(door: Door, max_tokens: int, model: str | None = None) -> Requests:
    """Find out what the door serves, with one token of chat, or of a completion if it has no chat.

    Without a `model` it is the first that the door names. Raises `StackError` when it answers neither.
    """
    model = model or _model(door)
    chat = Requests(CHAT, model, 1)
    refused = _try(door, chat)
    if refused is None:
        return Requests(CHAT, model, max_tokens)
    also_refused = _try(door, Requests(COMPLETIONS, model, 1))
    if also_refused is None:
        return Requests(COMPLETIONS, model, max_tokens)
    raise StackError(f"The door answers neither {CHAT} ({refused}) nor {COMPLETIONS} ({also_refused})")


def _model(door: Door) -> str:
    status, body = _ask(door, "GET", "/v1/models")
    if status == 401:
        raise StackError("The door does not take this key, or asks for one: --api-key-file FILE")
    try:
        return str(json.loads(body)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise StackError(f"The door names no model at /v1/models: it answered {status}") from None


def _try(door: Door, requests: Requests) -> str | None:
    """Ask once; gives what is wrong with the answer, None if nothing is."""
    status, body = _ask(door, "POST", requests.path, requests.body("Hello", stream=False))
    ending, detail = judge_answer(status, body)
    return None if ending is Ending.WHOLE else detail


def _ask(door: Door, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    try:
        with contextlib.closing(door.connect(_PATIENCE)) as connection:
            connection.request(method, path, body, door.headers)
            response = connection.getresponse()
            return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        where = f"{door.scheme}://{door.host}:{door.port}"
        raise StackError(f"The door at {where} gave no answer: {error!r}") from None


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the admin door: the state of every server and what it has in flight."""

    states: dict[str, str]
    in_flight: dict[str, int]

    @property
    def ready(self) -> frozenset[str]:
        return frozenset(name for name, state in self.states.items() if state == "ready")

    @property
    def busy(self) -> int:
        return sum(self.in_flight.values())


@dataclass(frozen=True, slots=True)
class AdminDoor:
    """`GET /workers` on this machine."""

    port: int

    def look(self) -> Look | None:
        """Look once; None when nobody answers, as while the only process of the proxy is replaced."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_LOOK_PATIENCE)
        try:
            connection.request("GET", "/workers")
            told: list[dict[str, Any]] = json.loads(connection.getresponse().read())["workers"]
            return Look(
                {server["name"]: server["state"] for server in told},
                {server["name"]: server["in_flight"] for server in told},
            )
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return None
        finally:
            connection.close()
