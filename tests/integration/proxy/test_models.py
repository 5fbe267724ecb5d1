"""Several models behind one door: each request goes to the servers of the model that it names."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.integration.proxy.harness import (
    CHAT,
    HOST,
    KEY,
    Answer,
    ScriptedWorker,
    Stack,
    Wire,
    chat,
    request,
)
from tests.support import fake_realtime
from tests.support.polling import until
from vllm_stack.address import TcpAddress

MakeStack = Callable[..., Stack]
BIG, SMALL = ("org/big", "big"), ("org/small", "small")
TRANSCRIPTIONS = "/v1/audio/transcriptions"
MIB = 1024 * 1024


def pair(stack: Stack) -> Stack:
    """Two workers of the big model, one of the small one."""
    return stack.serve_models((BIG, (0, 1)), (SMALL, (2,)))


@pytest.fixture(scope="module")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("models"), workers=3) as stack:
        yield pair(stack).start()


@pytest.fixture
def stack(shared_pair: Stack) -> Iterator[Stack]:
    yield shared_pair
    shared_pair.wait_quiet()
    shared_pair.check_log()


@pytest.fixture
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    url = f"http://{HOST}:{stack.port}/v1"
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as opened:
        yield opened


@pytest.fixture
def wires() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def asking(model: Any, **more: Any) -> dict[str, Any]:
    return {**chat(tokens=1), "model": model, **more}


def worker_of(stack: Stack, answer: Answer) -> int:
    """Say which worker an answer came from."""
    name = answer.header("x-fake-worker")
    return next(worker.index for worker in stack.workers if worker.name == name)


def counts(stack: Stack) -> list[int]:
    return [worker.count() for worker in stack.workers]


def check_missing(answer: Answer) -> None:
    assert answer.status == 400, answer.body
    error = answer.error
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error",
        "model",
        "model_required",
    )
    assert "/v1/models" in error["message"]


def check_unknown(answer: Answer, name: str = "nobody") -> None:
    assert answer.status == 404, answer.body
    assert answer.error == {
        "message": f"The model `{name}` does not exist: GET /v1/models lists those that do",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


# ------------------------------------------------------------------ which worker


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/embeddings", "/tokenize", "/v1/responses"])
@pytest.mark.parametrize(("name", "workers"), [*((n, {0, 1}) for n in BIG), *((n, {2}) for n in SMALL)])
def test_a_request_goes_to_a_worker_of_the_model_it_names(
    stack: Stack, path: str, name: str, workers: set[int]
) -> None:
    for _ in range(6):
        assert worker_of(stack, stack.ask(request(path=path, body=asking(name)))) in workers


def test_a_stream_comes_from_the_model_it_names(client: openai.OpenAI, stack: Stack) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    before = counts(stack)
    parts = list(client.chat.completions.create(model="small", messages=messages, stream=True))
    assert parts
    assert [now - then for now, then in zip(counts(stack), before, strict=True)] == [0, 0, 1]


def test_a_body_reaches_the_worker_byte_for_byte(stack: Stack) -> None:
    body = b' {"fake": {"tokens": 1}, "messages": [] ,\n"model" : "sm\\u0061ll" } '
    assert stack.ask(request(body=body, content_type="application/json")).status == 200
    seen = stack.workers[2].last()
    assert seen["body_length"] == len(body)


def test_an_unknown_model_is_one_that_the_openai_client_understands(
    client: openai.OpenAI, stack: Stack
) -> None:
    before = counts(stack)
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "hi"}])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "nobody" in str(caught.value)
    assert counts(stack) == before


@pytest.mark.parametrize("name", ["nobody", "ORG/BIG", "org/big ", "lora", "ä\u20ac"])
def test_a_name_is_unknown_unless_it_is_one_of_those_given(stack: Stack, name: str) -> None:
    check_unknown(stack.ask(request(body=asking(name))), name)


def test_a_long_name_is_not_repeated_in_full(stack: Stack) -> None:
    check_unknown(stack.ask(request(body=asking("x" * 5000))), "x" * 100 + "...")


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": []}',
        b'{"model": null}',
        b'{"model": ""}',
        b'{"model": 3}',
        b'{"model": ["small"]}',
        b'["small"]',
        b"3",
    ],
)
def test_a_request_without_a_model_is_told_to_name_one(stack: Stack, body: bytes) -> None:
    before = counts(stack)
    with stack.wire() as wire:
        check_missing(wire.send(request(body=body, content_type="application/json")).answer())
        assert wire.goes_on()
    assert counts(stack) == before


@pytest.mark.parametrize(
    "body", [None, b"", b'{"model": "small"', b"model=small", b"\xff\xfe", b'{"a":' + b"[" * 100_000]
)
def test_a_body_that_is_no_json_is_refused_as_such(stack: Stack, body: bytes | None) -> None:
    with stack.wire() as wire:
        answer = wire.send(request(body=body, content_type="application/json")).answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_json")
        assert wire.goes_on()


def test_who_has_no_key_hears_nothing_of_models(stack: Stack) -> None:
    for path, body in ((CHAT, asking("nobody")), ("/v1/models", None)):
        answer = stack.ask(request("POST" if body else "GET", path, body, key="wrong"))
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")


def test_what_names_no_model_goes_to_any_worker(stack: Stack) -> None:
    assert {worker_of(stack, stack.ask(request("GET", "/version"))) for _ in range(60)} == {0, 1, 2}
    assert stack.ask(request("GET", "/v1/unheard-of")).status == 404


# ------------------------------------------------------------------ bodies


@pytest.mark.parametrize("name", ["small", "big"])
def test_the_name_may_stand_behind_megabytes(stack: Stack, name: str) -> None:
    picture = "data:image/png;base64," + "A" * (3 * MIB)
    body = {"fake": {"tokens": 1}, "messages": [{"role": "user", "content": picture}], "model": name}
    answer = stack.ask(request(body=body))
    assert answer.status == 200
    worker = stack.workers[worker_of(stack, answer)]
    assert (worker.index == 2) == (name == "small")
    assert worker.last()["body_length"] == len(json.dumps(body))


def test_a_large_body_is_sent_again_when_its_worker_breaks(
    scripted_pair: tuple[Stack, list[ScriptedWorker]],
) -> None:
    stack, workers = scripted_pair
    for worker in workers[:2]:
        worker.play = lambda sock, data: False
    body = {"messages": ["A" * (3 * MIB)], "model": "big"}
    answer = stack.ask(request(body=body))
    assert (answer.status, answer.header("x-should-retry")) == (502, "false")
    assert [len(worker.requests) for worker in workers] == [1, 1, 0]
    assert all(json.dumps(body).encode() in worker.requests[0] for worker in workers[:2])


@pytest.mark.parametrize("size", [4, 20_000, 3 * MIB])
def test_a_chunked_body_is_read_for_its_model(stack: Stack, size: int) -> None:
    body = json.dumps({"fake": {"tokens": 1}, "messages": ["x" * size], "model": "small"}).encode()
    step = 7 if size < MIB else 5000
    pieces = [body[start : start + step] for start in range(0, len(body), step)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    head = request(content_type="application/json", transfer_encoding="chunked")
    answer = stack.ask(head + chunks)
    assert (answer.status, worker_of(stack, answer)) == (200, 2)
    assert stack.workers[2].last()["body_length"] == len(body)


@pytest.mark.parametrize("size", [4, 3 * MIB])
def test_a_client_that_waits_for_the_word_to_go_on_gets_it(stack: Stack, size: int) -> None:
    body = json.dumps({"fake": {"tokens": 1}, "messages": ["x" * size], "model": "small"}).encode()
    with stack.wire() as wire:
        head = request(content_type="application/json", expect="100-continue", content_length=str(len(body)))
        assert wire.send(head).head().status == 100
        answer = wire.send(body).answer()
        assert (answer.status, worker_of(stack, answer)) == (200, 2)
        assert wire.goes_on()


def test_a_body_that_is_too_large_is_refused(new_stack: MakeStack) -> None:
    stack = new_stack(workers=2, max_body=2 * MIB).serve_models((BIG, (0,)), (SMALL, (1,))).start()
    body = request(body=asking("big", words="x" * (2 * MIB)))
    assert stack.ask(body).error["code"] == "request_too_large"
    chunked = request(transfer_encoding="chunked") + b"%x\r\n" % (3 * MIB) + b"x" * (3 * MIB) + b"\r\n"
    assert stack.ask(chunked).error["code"] == "request_too_large"
    assert stack.count() == 0


def form(*fields: bytes, boundary: bytes = b"b0undary") -> bytes:
    return b"".join(b"--%s\r\n%s\r\n" % (boundary, field) for field in fields) + b"--%s--\r\n" % boundary


def field(name: str, value: bytes, more: str = "") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value


def post_form(body: bytes, kind: str = "multipart/form-data; boundary=b0undary") -> bytes:
    return request(path=TRANSCRIPTIONS, body=body, content_type=kind)


AUDIO = field(
    "file", bytes(range(256)) * 8192 + b"\r\n--b0undar", '; filename="model"\r\nContent-Type: audio/wav'
)


@pytest.mark.parametrize(
    "fields",
    [
        (field("model", b"small"), AUDIO),
        (AUDIO, field("model", b"small")),
        (field("language", b"model"), AUDIO, field("models", b"big"), field("model", b"small")),
        (field("model", b"big", '; filename="a"'), field("model", b"small")),
    ],
    ids=["before the file", "behind it", "among others", "beside a file of that name"],
)
def test_a_form_goes_to_the_model_of_its_field(stack: Stack, fields: tuple[bytes, ...]) -> None:
    body = form(*fields)
    answer = stack.ask(post_form(body))
    assert worker_of(stack, answer) == 2
    assert stack.workers[2].last()["body_length"] == len(body)


def test_a_form_of_the_openai_client_finds_its_model(client: openai.OpenAI, stack: Stack) -> None:
    stack.script({TRANSCRIPTIONS: {"status": 418}})
    before = counts(stack)
    with pytest.raises(openai.APIStatusError) as caught:
        client.audio.transcriptions.create(model="small", file=("a.wav", bytes(3 * MIB)))
    stack.script({})
    assert caught.value.status_code in (404, 418), "the fake has no ears"
    assert [now - then for now, then in zip(counts(stack), before, strict=True)] == [0, 0, 1]


def test_a_form_without_a_model_is_told_to_name_one(stack: Stack) -> None:
    check_missing(stack.ask(post_form(form(AUDIO))))
    check_missing(stack.ask(post_form(form(field("model", b"")))))
    check_unknown(stack.ask(post_form(form(field("model", b"nobody")))))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"no form at all", "multipart/form-data; boundary=b0undary"),
        (form(field("model", b"small")), "multipart/form-data"),
        (form(field("model", b"small")), "multipart/form-data; boundary=other"),
    ],
)
def test_a_form_that_is_none_is_refused_as_such(stack: Stack, body: bytes, kind: str) -> None:
    answer = stack.ask(post_form(body, kind))
    assert (answer.status, answer.error["code"]) == (400, "invalid_form")


# ------------------------------------------------------------------ the list


def listed(answer: Answer) -> dict[str, dict[str, Any]]:
    assert answer.status == 200
    assert answer.json["object"] == "list"
    data = answer.json["data"]
    assert [entry["id"] for entry in data] == [*BIG, *SMALL]
    return {entry["id"]: entry for entry in data}


def test_the_list_has_every_name_of_every_model_and_what_workers_say_of_it(
    stack: Stack, client: openai.OpenAI
) -> None:
    for entry in listed(stack.ask(request("GET", "/v1/models"))).values():
        assert entry["max_model_len"] == 4096
    assert [model.id for model in client.models.list()] == [*BIG, *SMALL]
    for _ in range(3):  # over connections that are kept
        listed(stack.ask(request("GET", "/v1/models?x=1")))


def test_the_list_can_be_asked_for_its_head(stack: Stack) -> None:
    whole = stack.ask(request("GET", "/v1/models"))
    with stack.wire() as wire:
        answer = wire.send(request("HEAD", "/v1/models")).answer(head_only=True)
        assert (answer.status, answer.header("content-length")) == (200, str(len(whole.body)))
        assert wire.goes_on()


def test_another_method_is_for_a_worker_to_refuse(stack: Stack) -> None:
    assert stack.ask(request("POST", "/v1/models", b"{}")).status == 405


@pytest.fixture(scope="module")
def shared_scripted_pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Stack, list[ScriptedWorker]]]:
    with ExitStack() as contexts:
        stack = pair(contexts.enter_context(Stack(tmp_path_factory.mktemp("raw"), workers=3)))
        workers = [ScriptedWorker(worker.port) for worker in stack.workers]
        for worker in workers:
            contexts.callback(worker.close)
        yield stack.start(workers=False), workers


@pytest.fixture
def scripted_pair(
    shared_scripted_pair: tuple[Stack, list[ScriptedWorker]],
) -> Iterator[tuple[Stack, list[ScriptedWorker]]]:
    """The same, of workers whose bytes the test writes."""
    stack, workers = shared_scripted_pair
    stack.wait_ready()
    for worker in workers:
        worker.hang_up()
        worker.requests.clear()
    yield shared_scripted_pair
    for worker in workers:
        worker.play = lambda sock, data: False
        worker.hang_up()
    stack.check_log()


def playing(answer: bytes, goes_on: bool = True) -> Callable[[socket.socket, bytes], bool]:
    def play(sock: socket.socket, data: bytes) -> bool:
        sock.sendall(answer)
        return goes_on

    return play


def test_what_a_server_calls_itself_beside_its_names_is_not_listed(
    scripted_pair: tuple[Stack, list[ScriptedWorker]],
) -> None:
    stack, workers = scripted_pair
    told = [{"id": name, "max_model_len": 7} for name in ("lora", "small", "big")]
    body = json.dumps({"object": "list", "data": told}).encode()
    chunked = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for worker in workers:
        worker.play = playing(b"HTTP/1.1 200 OK\r\n" + chunked)
    entries = listed(stack.ask(request("GET", "/v1/models")))
    lengths = {name: entry.get("max_model_len") for name, entry in entries.items()}
    assert lengths == {"org/big": None, "big": 7, "org/small": None, "small": 7}
    internal = (stack.out / "secrets/internal-key").read_bytes().strip()
    (seen,) = workers[2].requests
    assert b"authorization: Bearer " + internal in seen
    assert b"GET /v1/models HTTP/1.1" in seen


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"no http\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\n{}",
        b'HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{"data":[1]}',
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nfor ever",
    ],
)
def test_a_model_whose_server_talks_nonsense_is_listed_all_the_same(
    scripted_pair: tuple[Stack, list[ScriptedWorker]], answer: bytes
) -> None:
    stack, workers = scripted_pair
    for worker in workers:
        worker.play = playing(answer, goes_on=False)
    entries = listed(stack.ask(request("GET", "/v1/models")))
    for names in (BIG, SMALL):
        for name in names:
            created = entries[name].pop("created")
            assert abs(created - time.time()) < 60
            bare = {"id": name, "object": "model", "owned_by": "vllm", "root": names[0], "parent": None}
            assert entries[name] == bare


def test_a_server_that_does_not_answer_keeps_the_list_waiting_for_a_moment_only(
    new_stack: MakeStack,
) -> None:
    stack = new_stack(workers=2).serve_models((BIG, (0,)), (SMALL, (1,))).start()
    connection = HTTPConnection(HOST, stack.workers[0].port, timeout=5)
    connection.request("PUT", "/fake/scripts", json.dumps({"/v1/models": {"first_delay": 30}}))
    assert connection.getresponse().status == 200
    connection.close()
    begun = time.monotonic()
    entries = listed(stack.ask(request("GET", "/v1/models")))
    assert 1.5 < time.monotonic() - begun < 6
    assert ["max_model_len" in entry for entry in entries.values()] == [False, False, True, True]
    stack.check_log()


# ------------------------------------------------------------------ health


def health(stack: Stack, query: str = "", path: str = "/health") -> int:
    return stack.ask(request("GET", path + query, key=None)).status


def test_a_stack_is_ready_while_every_model_is(new_stack: MakeStack) -> None:
    stack = pair(new_stack(workers=3)).start()
    for path in ("/health", "/readyz", "/healthz", "/ping"):
        assert health(stack, path=path) == 200
    assert health(stack, "?model=org%2Fbig") == health(stack, "?model=small") == 200
    stack.workers[0].kill()
    until(lambda: not stack.admin()["workers"][0]["ready"], 10, "worker-0 is out")
    assert health(stack) == 200, "the other one of the model is there"
    stack.workers[2].kill()
    until(lambda: health(stack) == 503, 10, "a model has nobody")
    answer = stack.ask(request("GET", "/health", key=None))
    assert answer.json == {"status": "a model has no ready worker"}
    assert answer.header("retry-after")
    assert health(stack, "?model=org/small") == 503
    assert health(stack, "?model=big&x=1") == 200
    assert health(stack, path="/livez") == 200
    entries = listed(stack.ask(request("GET", "/v1/models")))
    assert ["max_model_len" in entry for entry in entries.values()] == [True, True, False, False]


def test_the_health_of_a_model_that_is_none_is_not_found(stack: Stack) -> None:
    check_unknown(stack.ask(request("GET", "/health?model=nobody", key=None)))
    assert health(stack, "?model=") == health(stack, "?x=nobody") == 200


# ------------------------------------------------------------------ WebSockets


def test_a_websocket_goes_to_the_model_of_its_query(new_stack: MakeStack) -> None:
    stack = pair(new_stack(workers=3))
    for worker in stack.workers:
        worker.program, worker.arguments = fake_realtime.__file__, []
    stack.start()
    keyed = {"Authorization": f"Bearer {KEY}"}

    def open_one(query: str) -> None:
        url = f"ws://{HOST}:{stack.port}/v1/realtime{query}"
        with connect(url, additional_headers=keyed, proxy=None):
            pass

    def taken() -> list[int]:
        return [len(worker.state()["heads"]) for worker in stack.workers]

    for _ in range(3):
        open_one("?model=org%2Fsmall")
    assert taken() == [0, 0, 3]
    open_one("?intent=x&model=big")
    assert sum(taken()[:2]) == 1
    for query, status, code in (
        ("", 400, "model_required"),
        ("?model=", 400, "model_required"),
        ("?model=nobody", 404, "model_not_found"),
    ):
        with pytest.raises(InvalidStatus) as caught:
            open_one(query)
        assert caught.value.response.status_code == status
        assert json.loads(caught.value.response.body or b"")["error"]["code"] == code


# ------------------------------------------------------------------ limits, lines, retries


def hold(stack: Stack, wires: ExitStack, model: str) -> Wire:
    """Take a place of a model, until the connection ends."""
    wire = wires.enter_context(stack.wire(timeout=20))
    body = {**chat(stream=True, tokens=1, hang=2), "model": model}
    assert wire.send(request(body=body)).head().status == 200
    return wire


def test_a_model_at_its_limit_does_not_touch_the_other(new_stack: MakeStack, wires: ExitStack) -> None:
    stack = pair(new_stack(workers=3, max_inflight_per_worker=1)).start()
    hold(stack, wires, "small")
    answer = stack.ask(request(body=asking("small")))
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert "of this model" in answer.error["message"]
    hold(stack, wires, "big")
    assert stack.ask(request(body=asking("big"))).status == 200
    hold(stack, wires, "big")
    assert stack.ask(request(body=asking("big"))).status == 429


@pytest.mark.parametrize("processes", [1, 3])
def test_the_line_of_a_model_holds_up_nobody_else(
    new_stack: MakeStack, wires: ExitStack, processes: int
) -> None:
    options = {"max_inflight_per_worker": 1, "queue_timeout": 30.0, "proxy_processes": processes}
    stack = new_stack(workers=2, **options).serve_models((BIG, (0,)), (SMALL, (1,))).start()
    held = hold(stack, wires, "small")
    waiting = [wires.enter_context(stack.wire(timeout=20)) for _ in range(6)]
    for wire in waiting:
        wire.send(request(body=asking("small")))
    until(lambda: stack.admin()["waiting"] == 6, 10, "six wait")
    for _ in range(12):  # whatever process gets it
        begun = time.monotonic()
        assert stack.ask(request(body=asking("big"))).status == 200
        assert time.monotonic() - begun < 5
    assert stack.admin()["waiting"] == 6
    held.sock.close()
    assert [wire.answer().status for wire in waiting] == [200] * 6
    assert stack.workers[1].state()["most_in_flight"] == 1
    assert stack.workers[0].state()["most_in_flight"] == 1


def test_requests_of_one_model_wait_in_the_order_they_came_over_all_processes(
    new_stack: MakeStack, wires: ExitStack
) -> None:
    options = {"max_inflight_per_worker": 1, "queue_timeout": 30.0, "proxy_processes": 3}
    stack = new_stack(workers=2, **options).serve_models((BIG, (0,)), (SMALL, (1,))).start()
    held = {name: hold(stack, wires, name) for name in ("small", "big")}
    waiting = []
    for number in range(12):
        wire = wires.enter_context(stack.wire(timeout=20))
        name = ("small", "big")[number % 2]
        waiting.append(wire.send(request(body=asking(name), x_number=str(number))))
        until(lambda n=number: stack.admin()["waiting"] == n + 1, 10, "it waits")  # type: ignore[misc]
    held["small"].sock.close()
    assert [wire.answer().status for wire in waiting[::2]] == [200] * 6
    held["big"].sock.close()
    assert [wire.answer().status for wire in waiting[1::2]] == [200] * 6
    for worker, numbers in ((stack.workers[1], [0, 2, 4, 6, 8, 10]), (stack.workers[0], [1, 3, 5, 7, 9, 11])):
        heads = [dict(seen["headers"]) for seen in worker.requests()]
        assert [int(head["x-number"]) for head in heads if "x-number" in head] == numbers


def test_a_model_that_still_starts_is_waited_for_and_the_other_is_not(
    new_stack: MakeStack, wires: ExitStack
) -> None:
    stack = new_stack(workers=2, queue_timeout=30.0).serve_models((BIG, (0,)), (SMALL, (1,)))
    stack.start_proxy()
    stack.workers[0].start()
    until(lambda: stack.admin()["workers"][0]["ready"], 20, "worker-0 is ready")
    late = wires.enter_context(stack.wire(timeout=20)).send(request(body=asking("small")))
    until(lambda: stack.admin()["waiting"] == 1, 10, "one waits")
    for _ in range(3):
        assert stack.ask(request(body=asking("big"))).status == 200
    assert stack.admin()["waiting"] == 1
    stack.workers[1].start()
    answer = late.answer()
    assert (answer.status, worker_of(stack, answer)) == (200, 1)


def test_a_model_nobody_has_ready_is_unavailable_when_the_wait_is_over(new_stack: MakeStack) -> None:
    stack = new_stack(workers=2, queue_timeout=0.5).serve_models((BIG, (0,)), (SMALL, (1,)))
    stack.start_proxy()
    stack.workers[0].start()
    until(lambda: stack.admin()["workers"][0]["ready"], 20, "worker-0 is ready")
    begun = time.monotonic()
    answer = stack.ask(request(body=asking("small")))
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    assert 0.4 < time.monotonic() - begun < 5
    assert stack.ask(request(body=asking("big"))).status == 200


def test_a_request_whose_worker_dies_never_goes_to_another_model(new_stack: MakeStack) -> None:
    stack = pair(new_stack(workers=3)).start()
    before = stack.workers[2].count()
    answer = stack.ask(request(body=asking("big", fake={"kill_api_server": True})))
    assert answer.status == 502, "it took both down"
    assert stack.workers[2].count() == before
    answer = stack.ask(request(body=asking("big")))
    assert (answer.status, answer.error["code"]) == (503, "no_ready_worker")
    assert stack.ask(request(body=asking("small"))).status == 200
    for worker in stack.workers[:2]:
        worker.bury()


def test_a_request_whose_worker_is_gone_finds_the_other_one_of_its_model(new_stack: MakeStack) -> None:
    stack = pair(new_stack(workers=3)).start()
    stack.workers[0].kill()
    assert {worker_of(stack, stack.ask(request(body=asking("big")))) for _ in range(10)} == {1}
    assert stack.workers[2].count() == 0


def test_a_stored_response_is_looked_for_everywhere_but_continued_within_its_model(
    scripted_pair: tuple[Stack, list[ScriptedWorker]],
) -> None:
    stack, workers = scripted_pair
    for worker in workers:
        worker.play = playing(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\n{}")
    assert stack.ask(request("GET", "/v1/responses/resp_1")).status == 404
    assert [len(worker.requests) for worker in workers] == [1, 1, 1]
    body = {"model": "big", "input": "hi", "previous_response_id": "resp_1"}
    assert stack.ask(request(path="/v1/responses", body=body)).status == 404
    assert [len(worker.requests) for worker in workers] == [2, 2, 1]


# ------------------------------------------------------------------ policies


def test_each_model_takes_its_workers_in_turn(new_stack: MakeStack) -> None:
    options = {"workers": 4, "policy": "round-robin"}
    stack = new_stack(**options).serve_models((BIG, (0, 1)), (SMALL, (2, 3))).start()
    seen: dict[str, list[int]] = {"big": [], "small": []}
    for name in ("big", "small", "small", "big", "big", "small", "big", "small"):
        seen[name].append(worker_of(stack, stack.ask(request(body=asking(name)))))
    assert seen == {"big": [0, 1, 0, 1], "small": [2, 3, 2, 3]}


@pytest.mark.parametrize("policy", ["prefix", "session"])
def test_a_conversation_stays_with_its_worker_in_every_model(new_stack: MakeStack, policy: str) -> None:
    stack = new_stack(workers=4, policy=policy, proxy_processes=2)
    stack.serve_models((BIG, (0, 2)), (SMALL, (1, 3))).start()
    homes: dict[tuple[str, int], set[int]] = {}
    for _ in range(4):
        for number in range(12):
            for name in ("big", "small"):
                body = asking(name, messages=[{"role": "user", "content": f"question {number}"}])
                answer = stack.ask(request(body=body, x_session_id=str(number)))
                homes.setdefault((name, number), set()).add(worker_of(stack, answer))
    assert {len(workers) for workers in homes.values()} == {1}
    assert set.union(*(workers for (name, _), workers in homes.items() if name == "big")) == {0, 2}
    assert set.union(*(workers for (name, _), workers in homes.items() if name == "small")) == {1, 3}


# ------------------------------------------------------------------ servers elsewhere


def test_another_stack_of_several_models_is_asked_for_the_one_it_is_used_for(
    new_stack: MakeStack, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    back = new_stack(workers=2).serve_models((BIG, (0,)), (SMALL, (1,)))
    back.start_proxy()
    back.workers[0].start()
    upstream = TcpAddress(HOST, back.port)
    front = new_stack(workers=1, upstreams=(upstream,), upstream_key_file=keys)
    front.serve_models((("own",), (0,)), (BIG, (1,))).start()  # ready, though the back's small one is not
    assert [worker["model"] for worker in front.admin()["workers"]] == ["own", "org/big"]
    answer = front.ask(request(body=asking("big")))
    assert (answer.status, answer.header("x-fake-worker")) == (200, back.workers[0].name)
    data = front.ask(request("GET", "/v1/models")).json["data"]
    assert [(entry["id"], "max_model_len" in entry) for entry in data] == [
        ("own", True),
        ("org/big", True),
        ("big", True),
    ]
    assert front.ask(request("GET", "/health", key=None, via="1.1 vllm-stack")).status == 503
    assert front.ask(request("GET", "/health?model=own", key=None, via="1.1 vllm-stack")).status == 200
    assert front.ask(request(body=asking("big"), via="1.1 vllm-stack")).status == 503
    assert front.ask(request(body=asking("own"), via="1.1 vllm-stack")).status == 200


# ------------------------------------------------------------------ what is shown, and one model


def test_the_admin_door_says_which_model_a_worker_has(stack: Stack) -> None:
    models = {worker["name"]: worker["model"] for worker in stack.admin()["workers"]}
    assert models == {"worker-0": "org/big", "worker-1": "org/big", "worker-2": "org/small"}


def test_one_model_takes_any_name_and_none(new_stack: MakeStack) -> None:
    stack = new_stack(workers=2).start()
    (model,) = json.loads((stack.out / "proxy.json").read_text())["models"]
    assert {worker["model"] for worker in stack.admin()["workers"]} == {model["names"][0]}
    for body in (asking("nobody"), {**asking("x"), "model": None}):
        data = json.dumps(body).encode()
        assert stack.ask(request(body=data, content_type="application/json")).status == 200
        assert stack.count() > 0
    answer = stack.ask(request("GET", "/v1/models"))
    assert answer.header("x-fake-worker"), "a worker's own list"
    assert stack.ask(request(body=b"{", content_type="application/json")).header("x-fake-worker")
    assert health(stack, "?model=nobody") == 200
