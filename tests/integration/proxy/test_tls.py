"""The public door in TLS: the same door, seen through the clients' own TLS."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from tests.integration.proxy.harness import KEY, Stack, Wire, chat, request
from tests.support.certificates import Certificate, make_certificate
from tests.support.polling import throughout, until

Leave = Callable[[Wire], object]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, files: Certificate) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("tls"), **files.options) as stack:
        stack.tls = files.client
        yield stack.start()


@pytest.fixture
def tls(shared: Stack) -> Iterator[Stack]:
    yield shared
    shared.wait_quiet()
    shared.check_log()


def test_the_openai_client_works_over_https(tls: Stack, files: Certificate) -> None:
    with (
        openai.DefaultHttpxClient(verify=files.client) as http_client,
        openai.OpenAI(
            base_url=f"https://localhost:{tls.port}/v1",
            api_key=KEY,
            max_retries=0,
            timeout=10,
            http_client=http_client,
        ) as client,
    ):
        assert client.models.list().data
        messages: list[Any] = [{"role": "user", "content": "one two three"}]
        whole = client.chat.completions.create(model="m", messages=messages)
        stream = client.chat.completions.create(model="m", messages=messages, stream=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text == whole.choices[0].message.content
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()


def test_the_connection_is_kept_pipelined_and_told_to_the_workers(tls: Stack) -> None:
    with tls.wire() as wire:
        for number in range(3):
            wire.send(request(body=chat(words=f"number-{number}", tokens=1), x_forwarded_proto="http"))
            assert f"number-{number}" in str(wire.answer().json)
        wire.send(request(body=chat(tokens=1)) + request("GET", "/v1/models"))
        assert [wire.answer().status, wire.answer().status] == [200, 200]
    seen = [r for worker in tls.workers for r in worker.requests()]
    for each in seen:
        said = [value for name, value in each["headers"] if name.lower() == "x-forwarded-proto"]
        assert said == ["https"]


def test_a_plain_door_tells_the_workers_nothing_of_https(stack: Stack) -> None:
    stack.ask(request(body=chat(words="plain", tokens=1), x_forwarded_proto="https"))
    seen = [r for worker in stack.workers for r in worker.requests()]
    assert not [name for each in seen for name, _ in each["headers"] if name.lower() == "x-forwarded-proto"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_stream(tls: Stack, files: Certificate, version: ssl.TLSVersion) -> None:
    context = files.new_client()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    with tls.wire(tls=context) as wire:
        assert isinstance(wire.sock, ssl.SSLSocket)
        assert wire.sock.selected_alpn_protocol() == "http/1.1"
        answer = wire.send(request(body=chat(stream=True, tokens=50, delay=0.005))).answer()
        assert (answer.status, answer.whole, answer.events[-1]) == (200, True, b"data: [DONE]")
        assert wire.send(request(body=chat(tokens=1))).answer().status == 200


def test_tls_1_1_is_refused(tls: Stack, files: Certificate) -> None:
    context = files.new_client()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        tls.wire(tls=context)


# ------------------------------------------------------------------ clients that go

LEAVES: dict[str, Leave] = {
    "close": lambda wire: wire.sock.close(),
    "reset": lambda wire: wire.reset(),
    "half-close": lambda wire: wire.finish(),
    "goodbye": lambda wire: goodbye(wire),
}
MOMENTS = {
    "mid-stream": chat(stream=True, tokens=500, delay=0.02),
    "silent stream": chat(stream=True, tokens=8, hang=2),
    "before the first token": chat(stream=True, hang=True),
    "non-streamed": chat(tokens=1000, delay=0.05),
}


def goodbye(wire: Wire) -> None:
    """Send close_notify alone and keep the socket: the record is all that tells of the end."""
    assert isinstance(wire.sock, ssl.SSLSocket)
    wire.sock.settimeout(0)
    with contextlib.suppress(OSError):
        wire.sock.unwrap()


@pytest.mark.parametrize("leave", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("body", MOMENTS.values(), ids=MOMENTS)
@pytest.mark.parametrize("early", [b"", b"G"], ids=["at once", "after more bytes"])
def test_a_client_that_goes_stops_its_worker_within_a_second(
    tls: Stack, body: dict[str, object], leave: Leave, early: bytes
) -> None:
    with tls.wire() as wire:
        wire.send(request(body=body))
        until(lambda: sum(w.state()["in_flight"] for w in tls.workers) == 1, 5, "a worker works")
        before = tls.aborted()
        if early:
            wire.send(early)
        start = time.monotonic()
        leave(wire)
        until(lambda: tls.aborted() == before + 1, 3, "the worker saw the client go")
        assert time.monotonic() - start < 1
    until(lambda: sum(tls.in_flight()) == 0, 1, "nothing is in flight")


def test_early_bytes_are_the_next_request(tls: Stack) -> None:
    with tls.wire() as wire:
        wire.send(request(body=chat(stream=True, tokens=10, delay=0.03)))
        assert wire.head().status == 200
        chunks = wire.chunks()
        next(chunks)
        wire.send(request("GET", "/v1/models"))
        assert None not in list(chunks)
        assert wire.answer().json["object"] == "list"


# ------------------------------------------------------------------ handshakes that fail


def test_a_slow_handshake_is_closed_and_holds_up_nobody(tls: Stack) -> None:
    """One says nothing, one sends a byte now and then; both are closed after 10 s."""
    with socket.create_connection(("127.0.0.1", tls.port)) as silent, socket.socket() as slow:
        slow.connect(("127.0.0.1", tls.port))
        begun = time.monotonic()
        hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50
        for byte in hello[:20]:
            slow.send(bytes([byte]))
            asked = time.monotonic()
            assert tls.ask(request(body=chat(tokens=1))).status == 200
            assert time.monotonic() - asked < 1
            time.sleep(0.2)  # the pace is the subject
        for sock in (silent, slow):
            sock.settimeout(15)
            assert sock.recv(100) == b""
        assert 8 < time.monotonic() - begun < 14


@pytest.mark.parametrize(
    "data",
    [b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n", b"\x16\x03\x01\x00\x05hello", b"\0" * 5000],
    ids=["plain HTTP", "an empty line", "a broken hello", "zeros"],
)
def test_what_is_no_handshake_is_closed(tls: Stack, data: bytes) -> None:
    with Wire(tls.port, timeout=5) as wire:
        wire.send(data).finish()
        with contextlib.suppress(ConnectionError):
            said = wire.sock.recv(100)
            assert said == b"" or said[0] == 0x15, "a TLS alert, or nothing"
            assert said == b"" or wire.sock.recv(100) == b""


def test_a_client_that_leaves_in_its_handshake_leaves_nothing(tls: Stack) -> None:
    (process,) = (p for p in psutil.Process(tls.proxy.pid).children() if p.is_running())
    until(lambda: tls.ask(request(body=chat(tokens=1))).status == 200, 5, "it works")
    before = process.num_fds()
    for _ in range(50):
        with Wire(tls.port) as wire:
            wire.send(b"\x16\x03\x01")
    until(lambda: process.num_fds() <= before + 2, 5, "their descriptors are free")


# ------------------------------------------------------------------ much data


def test_large_bodies_pass_whole_in_both_directions(tls: Stack) -> None:
    words = "x" * 5_000_000
    answer = tls.ask(request(body=chat(words=words, tokens=3)))
    assert answer.status == 200
    long = tls.ask(request(body=chat(stream=True, tokens=1000, size=10_000)))
    assert long.whole
    assert len(long.body) > 10_000_000
    assert long.events[-1] == b"data: [DONE]"
    held = tls.ask(request(body=chat(tokens=1, size=200_000)))
    assert (held.status, held.whole) == (200, True)


def test_a_slow_reader_holds_up_its_worker_and_gets_all_in_the_end(tls: Stack) -> None:
    """The proxy's memory must not take what the client does not."""
    (process,) = psutil.Process(tls.proxy.pid).children()
    with tls.wire(receive_buffer=4096, timeout=30) as wire:
        wire.send(request(body=chat(stream=True, tokens=3000, size=10_000)))
        assert wire.head().status == 200
        until(lambda: sum(tls.in_flight()) == 1, 5, "it is in flight")
        throughout(lambda: sum(tls.in_flight()) == 1, 0.5, "what has room on the way fills it")
        before = process.memory_info().rss
        throughout(lambda: sum(tls.in_flight()) == 1, 1, "the worker waits")
        assert process.memory_info().rss - before < 4_000_000
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(tls.ask, request(body=chat(tokens=1))).result(2).status == 200
        size = 0
        for chunk in wire.chunks():
            assert chunk is not None
            size += len(chunk)
        assert size > 30_000_000


def test_the_end_of_a_closed_answer_arrives_at_a_slow_reader(tls: Stack) -> None:
    """What the client has not taken when the proxy closes must follow before the goodbye."""
    before = tls.count()
    with tls.wire(receive_buffer=4096, timeout=30) as wire:
        wire.send(request(body=chat(tokens=1, size=230_000), connection="close"))
        until(lambda: tls.count() > before, 5, "it has been asked for")
        tls.wait_quiet()
        answer = wire.answer()
        assert answer.whole
        assert len(answer.body) > 230_000
        assert wire.ended()


# ------------------------------------------------------------------ failures and the end


def test_a_stream_that_breaks_ends_with_an_error_and_no_last_chunk(tls: Stack) -> None:
    answer = tls.ask(request(body=chat(stream=True, tokens=8, reset_after_events=3)))
    assert not answer.whole
    assert b'"error"' in answer.events[-1]
    tls.wait_ready()


def test_a_stop_hangs_up_on_idle_clients_and_lets_streams_end(tmp_path: Path, files: Certificate) -> None:
    with Stack(tmp_path, **files.options) as stack:
        stack.tls = files.client
        stack.start()
        with stack.wire() as idle, stack.wire() as busy:
            assert idle.goes_on()
            busy.send(request(body=chat(stream=True, tokens=30, delay=0.05)))
            assert busy.head().status == 200
            stack.proxy.terminate()
            begun = time.monotonic()
            assert idle.ended()
            assert time.monotonic() - begun < 1
            assert None not in list(busy.chunks())
        assert stack.proxy.wait(5) == 0


def accepts(pid: int, port: int) -> bool:
    """Tell whether a process listens; one that is gone does not."""
    try:
        connections = psutil.Process(pid).net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def test_a_hup_takes_a_renewed_certificate_cuts_no_answer_and_survives_a_bad_one(tmp_path: Path) -> None:
    old = make_certificate(tmp_path)
    with Stack(tmp_path / "stack", **old.options) as stack:
        stack.tls = old.client
        stack.start()
        with stack.wire() as busy:
            busy.send(request(body=chat(stream=True, tokens=20, delay=0.05)))
            assert busy.head().status == 200
            new = make_certificate(tmp_path)
            stack.proxy.send_signal(signal.SIGHUP)
            stack.tls = new.client
            (old,) = stack.processes()[:1]
            until(lambda: stack.wire().__exit__() is None, 5, "the new one is shown")
            until(lambda: not accepts(old, stack.port), 10, "the old process takes no connections")
            assert None not in list(busy.chunks())
        new.certificate.write_text("half a certi")
        stack.proxy.send_signal(signal.SIGHUP)
        until(lambda: "The certificate of before stays" in stack.log.read_text(), 5, "it was refused")
        stack.wait_ready()
        assert stack.ask(request(body=chat(tokens=1))).status == 200


def test_a_proxy_whose_certificate_is_gone_says_so_in_one_line(tmp_path: Path) -> None:
    files = make_certificate(tmp_path)
    with Stack(tmp_path / "stack", **files.options) as stack:
        files.certificate.write_text("half a certi")
        stack.start_proxy()
        assert stack.proxy.wait(10) == 1
        (line,) = stack.log.read_text().splitlines()
        assert str(files.certificate) in line
