"""What the fake vLLM says on a connection: strict HTTP/1.1 in, OpenAI answers and faults out.

fake_vllm.py is the program; this is its wire. The bytes are laid out as vLLM under uvicorn
lays them out: one write and one chunk an SSE event, the final chunk alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import socket
import struct
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property, lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import httptools

if TYPE_CHECKING:
    from tests.support.fake_vllm import FakeVllm

# In the body's field "fake", in the header "x-fake", or per path by PUT /fake/scripts.
# An int where "events" stands counts SSE events from 1, the role event and [DONE] included.
SCRIPT: dict[str, str] = {
    "tokens": "content events, or words of a whole answer (8, at most max_tokens)",
    "delay": "seconds before each token (0)",
    "first_delay": "seconds before the response head (0)",
    "first_event_delay": "seconds between the head and the first event (0)",
    "size": "characters of a whole answer's text, or of each event's text",
    "headers": "{name: value} added to the response head",
    "status": "answer with this status and an OpenAI error (204, 304: nothing)",
    "interim": "send this 1xx head first",
    "abort": "finish_reason abort, after `tokens` tokens (0)",
    "done": "false: end the stream cleanly without data: [DONE]",
    "hang": "true: never answer; n: fall silent after n events",
    "kill_api_server": "true: SIGKILL itself; n: after n events",
    "reset_before_head": "RST",
    "close_before_head": "FIN",
    "reset_after_events": "n: RST after n events",
    "close_after_events": "n: FIN after n events, no final chunk",
    "cut_mid_event": "n: FIN inside the n-th event",
    "close_mid_body": "n: FIN after n bytes of a Content-Length body",
    "garbage_head": "bytes that are not HTTP, then FIN",
    "huge_head": "true: a 70,000-byte header; n: n bytes",
    "cl_and_te": "Content-Length and Transfer-Encoding together",
    "bad_chunk": "true: a chunk size that is none after the first event; n: after n",
    "extra_bytes_after_body": "a second, unasked response in the same write",
    "no_body_framing": "neither length nor chunks: the body ends with the connection",
    "forbidden_body": "a body where there must be none (HEAD, 204, 304)",
}
Script = Mapping[str, Any]

INFERENCE = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
ROUTES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("/health", "/version", "/metrics", "/load", "/v1/models"), ("GET",)),
    **dict.fromkeys((*INFERENCE, "/tokenize"), ("POST",)),
    "/ping": ("GET", "POST"),
    # Here to be seen when they are reached; a proxy must keep them out of reach.
    **dict.fromkeys(("/sleep", "/wake_up", "/is_sleeping", "/collective_rpc"), ("GET", "POST")),
    **dict.fromkeys(("/pause", "/resume", "/reset_prefix_cache", "/update_weights"), ("GET", "POST")),
    **dict.fromkeys(("/start_profile", "/stop_profile", "/scale_elastic_ep"), ("GET", "POST")),
}
GUARDED_PREFIX = ("/v1", "/v2", "/inference", "/cohere")
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
JSON_TYPE = "application/json"
SSE_TYPE = "text/event-stream; charset=utf-8"
STALE = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nstale"


# ------------------------------------------------------------------ what it answers


def reply_tokens(prompt: str, count: int) -> list[str]:
    """Return the words a generation yields for `prompt`: numbered, so that a gap shows."""
    words = prompt.split() or ["fake"]
    return [f"{i}:{words[i % len(words)]} " for i in range(count)]


def prompt_of(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return str(messages[-1].get("content", ""))
    return str(body.get("prompt", body.get("input", "")))


@dataclass
class Generation:
    """One scripted answer in OpenAI's words; knows JSON, nothing of HTTP."""

    path: str
    identity: str
    model: str
    prompt: str
    tokens: list[str]
    finish: str
    usage: bool
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def chat(self) -> bool:
        return self.path == "/v1/chat/completions"

    def _message(self, kind: str, choices: list[dict[str, Any]], usage: bool) -> dict[str, Any]:
        message: dict[str, Any] = {"id": self.identity, "object": kind, "created": self.created}
        message |= {"model": self.model, "choices": choices}
        if usage:
            used, made = len(self.prompt.split()), len(self.tokens)
            message["usage"] = {"prompt_tokens": used, "completion_tokens": made}
            message["usage"]["total_tokens"] = used + made
        return message

    def _event(self, text: str | None, finish: str | None = None, role: bool = False) -> bytes:
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        if self.chat:
            delta = {} if text is None else {"content": text}
            choice["delta"] = {"role": "assistant", "content": ""} if role else delta
        else:
            choice["text"] = text or ""
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return sse(self._message(kind, [choice], usage=False))

    def events(self, done: bool) -> Iterator[tuple[bool, bytes]]:
        """Yield (is a token, one SSE event) in order."""
        if self.chat:
            yield False, self._event("", role=True)
        for token in self.tokens:
            yield True, self._event(token)
        for event in self.ending(self.finish):
            if done or not event.endswith(b"[DONE]\n\n"):
                yield False, event

    def ending(self, finish: str) -> list[bytes]:
        last = [self._event(None, finish)]
        if self.usage:
            last.append(sse(self._message("chat.completion.chunk", [], usage=True)))
        return [*last, b"data: [DONE]\n\n"]

    def whole(self, finish: str) -> bytes:
        if self.path == "/v1/embeddings":
            vector = [round(len(token) / 7, 4) for token in self.tokens]
            data = [{"object": "embedding", "index": 0, "embedding": vector}]
            return dump({"object": "list", "data": data, "model": self.model})
        text = "".join(self.tokens)
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        kind = "chat.completion" if self.chat else "text_completion"
        return dump(self._message(kind, [choice], usage=True))


def generation(request: Request, script: Script, served: str, draining: bool) -> Generation:
    body = request.json
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    abort = draining or bool(script.get("abort"))
    count = 0 if draining else int(script.get("tokens", 0 if abort else 8))
    finish = "abort" if abort else "stop"
    if isinstance(limit, int) and limit <= count:
        count, finish = limit, "abort" if abort else "length"
    prompt = prompt_of(body)
    tokens = reply_tokens(prompt, count)
    if size := int(script.get("size", 0)):
        tokens = [t.ljust(size, ".") for t in tokens] if body.get("stream") else ["." * size]
    prefix = "chatcmpl" if request.path == "/v1/chat/completions" else "cmpl"
    identity = f"{prefix}-{request.header('x-request-id') or request.serial}"
    options = body.get("stream_options")
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    model = str(body.get("model", served))
    return Generation(request.path, identity, model, prompt, tokens, finish, usage)


def dump(value: object) -> bytes:
    return ENCODER.encode(value).encode()


def sse(value: object) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def json_object(text: bytes | bytearray | str) -> dict[str, Any]:
    """Parse a JSON object; anything else is {}."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


@lru_cache(maxsize=2)
def http_date(second: int) -> str:
    return formatdate(second, usegmt=True)


def error_body(status: int, message: str) -> bytes:
    kind = HTTPStatus(status).phrase.replace(" ", "") + "Error"
    return dump({"error": {"message": message, "type": kind, "param": None, "code": status}})


# ------------------------------------------------------------------ HTTP


@dataclass
class Request:
    connection: int
    method: str = ""
    target: bytes = b""
    serial: int = 0
    version: str = ""
    fault: str = ""
    keep_alive: bool = True
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    body_length: int = 0
    body_sha256: str = ""
    json: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def path(self) -> str:
        return self.target.partition(b"?")[0].decode("latin-1")

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, value in self.headers:
            found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        return found

    def values(self, name: str) -> list[str]:
        return self._by_name.get(name, [])

    def header(self, name: str) -> str | None:
        return self.values(name)[0] if self.values(name) else None

    def shown(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "target": self.target.decode("latin-1"),
            "version": self.version,
            "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in self.headers],
            "body_length": self.body_length,
            "body_sha256": self.body_sha256,
            "connection": self.connection,
        }


def protocol_fault(request: Request) -> str | None:
    """Name what is wrong with a request that llhttp let through; None if nothing is."""
    lengths, codings = request.values("content-length"), request.values("transfer-encoding")
    hosts = request.values("host")
    if request.fault:
        return request.fault
    if request.version not in ("1.0", "1.1"):
        return f"HTTP version {request.version}"
    if len(hosts) > 1 or (request.version == "1.1" and not hosts):
        return f"{len(hosts)} Host headers"
    if len(lengths) > 1 or any(not re.fullmatch(r"[0-9]+", value) for value in lengths):
        return f"Content-Length {lengths}"
    chunked = [coding.lower() for coding in codings] == ["chunked"]
    if codings and (lengths or request.version == "1.0" or not chunked):
        return f"Transfer-Encoding {codings} in HTTP/{request.version}, Content-Length {lengths}"
    if request.header("upgrade"):
        return "Upgrade"
    whole_server = (request.method, request.target) == ("OPTIONS", b"*")
    if not whole_server and not re.fullmatch(rb"/[!-\"$-~]*", request.target):
        return f"target {request.target!r}"
    return None


class Connection(asyncio.Protocol):
    """One client connection: parse, queue, answer in order, keep alive."""

    transport: asyncio.Transport

    def __init__(self, server: FakeVllm) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.number = server.opened = server.opened + 1
        self.incoming: Request | None = None
        self.waiting: deque[Request] = deque()
        self.task: asyncio.Task[None] | None = None
        self.idle: asyncio.TimerHandle | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self.keep_alive = True
        self.chunked = self.bodiless = self.streaming = self.hangs = self.broken = False
        self.generation: Generation | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.server.truncated += self.incoming is not None
        self.writable.set()
        if self.idle:
            self.idle.cancel()
        if self.task:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.idle:
            self.idle.cancel()
        if self.broken:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.broken = True  # protocol_fault() refuses the request itself
        except httptools.HttpParserError as error:
            self.broken = True
            self.incoming = Request(self.number, target=data[:500], fault=f"{error}")
            self.on_message_complete()

    # httptools calls these.

    def on_message_begin(self) -> None:
        self.incoming = Request(self.number)

    def on_url(self, url: bytes) -> None:
        assert self.incoming
        self.incoming.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self.incoming
        self.incoming.headers.append((name, value))

    def on_headers_complete(self) -> None:
        request = self.incoming
        assert request
        request.method = self.parser.get_method().decode()
        request.version = self.parser.get_http_version()
        request.keep_alive = self.parser.should_keep_alive()
        if (request.header("expect") or "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        assert self.incoming
        self.incoming.body += body

    def on_message_complete(self) -> None:
        assert self.incoming
        self.waiting.append(self.incoming)
        self.incoming = None
        if self.task is None:
            self.answer_next()

    # Answering.

    def answer_next(self) -> None:
        if self.transport.is_closing():
            return
        if self.waiting:
            self.task = self.server.loop.create_task(self.answer(self.waiting.popleft()))
        else:
            seconds = self.server.keep_alive_seconds
            self.idle = self.server.loop.call_later(seconds, self.transport.close)

    async def answer(self, request: Request) -> None:
        server = self.server
        self.streaming, self.hangs, self.generation = False, False, None
        self.keep_alive, self.chunked = request.keep_alive, request.version == "1.1"
        self.bodiless = request.method == "HEAD"
        try:
            await self.perform(request)
            server.finished += self in server.in_flight
        except asyncio.CancelledError:
            if not self.transport.is_closing():
                self.finish_interrupted()
            elif self in server.in_flight:
                server.aborted += 1
        except Exception:  # a script that makes no sense
            traceback.print_exc()
            self.transport.abort()
        finally:
            server.in_flight.discard(self)
            self.task = None
        if not self.keep_alive:
            self.transport.close()
        self.answer_next()

    async def perform(self, request: Request) -> None:
        server, path = self.server, request.path
        request.body_length = len(request.body)
        request.body_sha256 = hashlib.sha256(request.body).hexdigest()
        request.json = json_object(request.body)
        request.body.clear()  # 200 requests are kept for /fake/requests
        if fault := protocol_fault(request):
            seen = {"reason": fault, "bytes": request.target.decode("latin-1")}
            server.malformed.append(seen)
            self.keep_alive = False
            return self.reply(400, b"Invalid HTTP request received.", kind="text/plain")
        if path.startswith("/fake/"):
            return self.reply(200, server.control(self, request))
        server.routes[path] += 1
        request.serial = server.routes.total()
        server.requests.append(request)
        if path.startswith(GUARDED_PREFIX) and request.method != "OPTIONS":
            scheme, _, key = (request.header("authorization") or "").partition(" ")
            if server.keys and (scheme.lower() != "bearer" or key not in server.keys):
                return self.reply(401, b'{"error":"Unauthorized"}')
        if path not in ROUTES:
            return self.reply(404, b'{"detail":"Not Found"}')
        script = server.script(request)
        if path in INFERENCE and request.method == "POST":
            server.in_flight.add(self)
            server.most = max(server.most, len(server.in_flight))
            self.generation = generation(request, script, server.served[0], server.draining)
            if server.dead:
                return self.finish_interrupted()
        await self.follow(request, script)

    async def follow(self, request: Request, script: Script) -> None:
        """Answer as the script says, faults included."""
        if unknown := sorted(script.keys() - SCRIPT.keys()):
            return self.reply(400, error_body(400, f"unknown script fields: {unknown}"))
        if first_delay := script.get("first_delay"):
            await asyncio.sleep(first_delay)
        if script.get("kill_api_server") is True:
            os.kill(os.getpid(), signal.SIGKILL)
        if script.get("hang") is True:
            await self.hang()
        if script.get("reset_before_head"):
            return await self.reset()
        if script.get("close_before_head"):
            return self.transport.close()
        if script.get("garbage_head"):
            self.transport.write(b"\x16\x03\x01 this is no HTTP \x00\r\n\r\n")
            return self.transport.close()
        if interim := script.get("interim"):
            self.transport.write(b"HTTP/1.1 %d Early\r\nlink: </early>\r\n\r\n" % interim)
        if status := script.get("status"):
            return self.reply(status, error_body(status, "scripted"), script)
        if request.method not in ROUTES[request.path]:
            return self.reply(405, b'{"detail":"Method Not Allowed"}', script)
        if self.generation is None:
            status, body, kind = self.server.plain(request)
            return self.reply(status, body, script, kind=kind)
        if "json" in (request.header("content-type") or "") and not request.json:
            return self.reply(400, error_body(400, "The body is not a JSON object"), script)
        if request.json.get("stream") and request.path != "/v1/embeddings":
            return await self.stream(self.generation, script)
        for _ in self.generation.tokens:
            await self.server.step(script.get("delay", 0))
        self.reply(200, self.generation.whole(self.generation.finish), script)

    async def stream(self, generation: Generation, script: Script) -> None:
        fields = [("content-type", SSE_TYPE)]
        if script.get("no_body_framing"):
            self.chunked = False
        if script.get("cl_and_te"):
            fields.append(("content-length", "40"))
        self.start_stream(fields, script)
        await asyncio.sleep(script.get("first_event_delay", 0))

        def at(fault: str, number: int) -> bool:
            return script.get(fault) is not None and int(script[fault]) == number

        for number, (token, event) in enumerate(generation.events(script.get("done", True)), 1):
            if token:
                await self.server.step(script.get("delay", 0))
            if at("cut_mid_event", number):
                self.transport.write(self.framed(event)[: len(event) // 2])
                return self.transport.close()
            self.transport.write(self.framed(event))
            await asyncio.sleep(0)  # one write and one chunk an event, as uvicorn does it
            await self.writable.wait()
            if at("bad_chunk", number):
                self.transport.write(b"zz\r\nnot a chunk\r\n")
                return self.transport.close()
            if at("close_after_events", number):
                return self.transport.close()
            if at("reset_after_events", number):
                return await self.reset()
            if at("kill_api_server", number):
                await asyncio.sleep(0.02)  # let the events leave first
                os.kill(os.getpid(), signal.SIGKILL)
            if at("hang", number):
                await self.hang()
        self.end_stream(STALE if script.get("extra_bytes_after_body") else b"")

    async def hang(self) -> None:
        self.hangs = True
        await asyncio.Event().wait()

    def finish_interrupted(self) -> None:
        """End an answer whose engine died or whose server is going: in words, as vLLM does."""
        if self.generation is None:
            return self.transport.close()
        message = "EngineCore encountered an issue. See stack trace for the root cause."
        if self.streaming:
            dead = [b"data: " + error_body(500, message) + b"\n\n", b"data: [DONE]\n\n"]
            for event in dead if self.server.dead else self.generation.ending("abort"):
                self.transport.write(self.framed(event))
            self.end_stream()
        elif self.server.dead:
            self.reply(500, error_body(500, message))
        else:
            self.generation.tokens = []
            self.reply(200, self.generation.whole("abort"))

    # Writing.

    def head(self, status: int, fields: list[tuple[str, str]], script: Script) -> bytes:
        fields = [("date", http_date(int(time.time()))), ("server", "uvicorn"), *fields]
        fields.append(("x-fake-pid", str(os.getpid())))
        fields += [("x-fake-worker", self.server.name)]
        fields += [(str(k), str(v)) for k, v in script.get("headers", {}).items()]
        if huge := script.get("huge_head"):
            fields.append(("x-huge", "h" * (70_000 if huge is True else huge)))
        if not self.keep_alive:
            fields.append(("connection", "close"))
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
        lines += [f"{name}: {value}" for name, value in fields]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")

    def framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data

    def start_stream(self, fields: list[tuple[str, str]], script: Script) -> None:
        self.streaming = True
        if self.chunked:
            fields = [*fields, ("transfer-encoding", "chunked")]
        else:
            self.keep_alive = False
        self.transport.write(self.head(200, fields, script))

    def end_stream(self, extra: bytes = b"") -> None:
        self.transport.write((b"0\r\n\r\n" if self.chunked else b"") + extra)

    def reply(
        self,
        status: int,
        body: bytes,
        script: Script = MappingProxyType({}),
        kind: str = JSON_TYPE,
    ) -> None:
        content = ("content-type", kind)
        length, coding = ("content-length", str(len(body))), ("transfer-encoding", "chunked")
        fields = [content, length]
        if self.bodiless or status in (204, 304):
            fields = fields if self.bodiless else []
            body = body if script.get("forbidden_body") else b""
        elif script.get("cl_and_te"):
            fields, body = [content, length, coding], self.framed(body) + b"0\r\n\r\n"
        elif script.get("bad_chunk"):
            fields, body = [content, coding], self.framed(body) + b"zz\r\nnot a chunk\r\n"
        elif script.get("no_body_framing"):
            fields, self.keep_alive = [content], False
        if (cut := script.get("close_mid_body")) is not None:
            body, self.keep_alive = body[:cut], False
        if script.get("extra_bytes_after_body"):
            body += STALE
        self.transport.write(self.head(status, fields, script) + body)

    async def reset(self) -> None:
        await asyncio.sleep(0.02)  # abort() drops what is still queued: let it leave first
        sock = self.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()
