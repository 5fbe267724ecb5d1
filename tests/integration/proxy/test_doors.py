"""Who may come in and where to, seen from outside, and by the real openai client."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import openai
import pytest

from tests.integration.proxy.harness import CHAT, KEY, Answer, Stack, Wire, chat, get_json, request
from tests.support.polling import until

MakeStack = Callable[..., Stack]


@pytest.fixture(scope="module")
def client(shared_stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{shared_stack.port}/v1", api_key=KEY, max_retries=0, timeout=10
    ) as client:
        yield client


def ask_with(stack: Stack, *headers: tuple[str, bytes], path: str = "/v1/models") -> Answer:
    lines = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in headers)
    return stack.ask(b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), lines))


GOOD_KEY = KEY.encode()


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", b"Bearer " + GOOD_KEY)],
        [("AUTHORIZATION", b"bEARER " + GOOD_KEY)],
        [("authorization", b"Bearer  " + GOOD_KEY + b" ")],
        [("x-api-key", GOOD_KEY)],
        [("X-API-KEY", b" " + GOOD_KEY)],
    ],
)
def test_a_known_key_opens_and_stays_at_the_door(stack: Stack, headers: list[tuple[str, bytes]]) -> None:
    answer = ask_with(stack, *headers)
    assert answer.status == 200
    worker = next(w for w in stack.workers if str(w.port) == answer.header("x-fake-worker"))
    seen = [(name.lower(), value) for name, value in worker.last()["headers"]]
    internal = (stack.out / "secrets/internal-key").read_text().strip()
    assert [value for name, value in seen if name in ("authorization", "x-api-key")] == [f"Bearer {internal}"]
    assert KEY not in str(seen)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", b"Bearer wrong")],
        [("Authorization", b"Bearer")],
        [("Authorization", GOOD_KEY)],
        [("Authorization", b"Basic " + GOOD_KEY)],
        [("Authorization", b"Bearer \xc3\xa9\xff")],
        [("Authorization", b"Bearer " + b"k" * 8000)],
        [("Authorization", b"Bearer " + GOOD_KEY)] * 2,
        [("Authorization", b"Bearer " + GOOD_KEY), ("authorization", b"Bearer other")],
        [("Authorization", b"Bearer other"), ("X-Api-Key", GOOD_KEY)],
        [("X-Api-Key", b"wrong")],
        [("X-Api-Key", GOOD_KEY)] * 2,
        [("X_Api_Key", GOOD_KEY)],
        [("Proxy-Authorization", b"Bearer " + GOOD_KEY)],
        [("Cookie", b"api_key=" + GOOD_KEY)],
    ],
)
def test_without_one_known_key_nothing_opens(stack: Stack, headers: list[tuple[str, bytes]]) -> None:
    before = stack.count()
    answer = ask_with(stack, *headers)
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.header("www-authenticate") == "Bearer"
    assert stack.count() == before


def test_a_key_in_the_query_does_not_count(stack: Stack) -> None:
    assert ask_with(stack, path=f"/v1/models?api_key={KEY}").status == 401


def test_the_internal_key_opens_nothing_from_outside(stack: Stack) -> None:
    internal = (stack.out / "secrets/internal-key").read_bytes().strip()
    assert ask_with(stack, ("Authorization", b"Bearer " + internal)).status == 401


@pytest.mark.parametrize("path", ["/health", "/healthz", "/readyz", "/livez"])
def test_health_needs_no_key_and_tells_no_topology(stack: Stack, path: str) -> None:
    answer = ask_with(stack, path=path)
    assert answer.status == 200
    assert answer.json.keys() == {"status"}


SPELLINGS = [
    "/sleep",
    "/sleep/",
    "/sleep?level=1",
    "/sleep/?level=1",
    "/%73leep",
    "/%73%6C%65%65%70",
    "/slee%70/",
    "//sleep",
    "/./sleep",
    "/x/../sleep",
    "/%2e/sleep",
    "/v1/%2e%2e/sleep",
    "/v1/..%2fsleep",
    "/%2fsleep",
    "/sleep%2f",
    "/sleep//",
    "/sleep/.",
    "/sleep/..",
    "/sleep%00",
    "/sleep%20",
    "/sleep%09",
    "/sleep#x",
    "/sleep/below",
    "\\sleep",
    "/\\sleep",
    "http://worker/sleep",
    "http://worker//sleep",
    "HTTP://worker:80/%73leep",
    "sleep",
]
# Not the same route to vLLM, which tells letters apart, nor to the fake: it answers 404 by itself.
FOREIGN = {"/SLEEP", "/Sleep", "/sleep;x", "/sleep%3Fx", "/sleep%20"}


@pytest.mark.parametrize("target", [*SPELLINGS, *sorted(FOREIGN)])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_a_closed_route_stays_closed_in_every_spelling(stack: Stack, method: str, target: str) -> None:
    before = stack.count()
    answer = stack.ask(request(method, target))
    assert answer.status in (400, 404)
    if target not in FOREIGN:
        assert stack.count() == before
        assert answer.error["type"] == "invalid_request_error"
    for worker in stack.workers:
        assert "/sleep" not in worker.state()["requests"]


CONTROL = [
    "/wake_up",
    "/is_sleeping",
    "/collective_rpc",
    "/pause",
    "/resume",
    "/reset_prefix_cache",
    "/update_weights",
    "/start_profile",
    "/stop_profile",
    "/scale_elastic_ep",
    "/metrics",
    "/load",
    "/server_info",
    "/docs",
    "/openapi.json",
    "/invocations",
    "/fault_tolerance/apply",
    "/reset_mm_cache",
    "/init_weight_transfer_engine",
    "/v1/load_lora_adapter",
]


@pytest.mark.parametrize("path", CONTROL)
def test_control_routes_are_closed(stack: Stack, path: str) -> None:
    before = stack.count()
    answer = stack.ask(request("POST", path, {}))
    assert (answer.status, answer.error["code"]) == (404, "not_found")
    assert stack.count() == before


def test_a_closed_route_is_not_told_apart_without_a_key(stack: Stack) -> None:
    assert {ask_with(stack, path=path).status for path in ("/sleep", "/v1/models", "/nowhere")} == {401}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_other_path_is_forwarded_as_it_is(stack: Stack, method: str) -> None:
    before = stack.count()
    answer = stack.ask(request(method, "/a%20b/c;d?e=f&g=%2F..", {} if method != "GET" else None))
    assert answer.status == 404
    assert answer.body == b'{"detail":"Not Found"}'
    assert stack.count() == before + 1
    targets = [(seen["method"], seen["target"]) for worker in stack.workers for seen in worker.requests()]
    assert (method, "/a%20b/c;d?e=f&g=%2F..") in targets


def test_operators_open_routes_by_name_and_doors_without_keys(new_stack: MakeStack) -> None:
    stack = new_stack(workers=1, api_keys=(), open_routes=("/sleep",)).start()
    for path in ("/sleep", "/sleep?level=2"):
        assert stack.ask(request("POST", path, {}, key=None)).status == 200, path
    assert stack.ask(request("POST", "/wake_up", {}, key=None)).status == 404
    assert stack.ask(request("GET", "/v1/models", key="anything at all")).status == 200
    assert ask_with(stack, ("Authorization", b"a"), ("Authorization", b"b")).status in (200, 401)
    assert stack.workers[0].state()["requests"]["/v1/models"] >= 1


def test_the_admin_door_is_read_only_and_on_this_machine(stack: Stack) -> None:
    assert get_json(stack.admin_port, "/workers").keys() == {"workers", "waiting", "totals", "reloads"}
    with Wire(stack.admin_port) as wire:
        answer = wire.send(b"POST /workers HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        assert b"405" in answer.sock.recv(4096)
    assert KEY not in str(stack.admin())


def test_what_the_admin_door_cannot_read_is_quoted_nowhere(stack: Stack) -> None:
    """gunicorn would write it into its log."""
    for line in (b"Authorization Bearer what-nobody-sees", b"Transfer-Encoding: what-nobody-sees"):
        with Wire(stack.admin_port) as wire:
            wire.send(b"GET /workers HTTP/1.1\r\nHost: localhost\r\n%b\r\n\r\n" % line)
            assert wire.sock.recv(64)
    until(lambda: stack.log.read_text().count("Invalid request from ip=127.0.0.1\n") == 2, 5, "it was noted")
    assert "what-nobody-sees" not in stack.log.read_text()


# ------------------------------------------------------------------ the openai client


def messages(text: str = "hello you") -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


def test_openai_chat(stack: Stack, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="m", messages=messages(), max_tokens=3, extra_headers={"x-request-id": "mine"}
    )
    assert answer.choices[0].message.content == "0:hello 1:you 2:hello "
    assert answer._request_id == "mine"
    assert answer.id == "chatcmpl-mine"


def test_openai_streaming_chat(stack: Stack, client: openai.OpenAI) -> None:
    options: openai.types.chat.ChatCompletionStreamOptionsParam = {"include_usage": True}
    with client.chat.completions.create(
        model="m", messages=messages(), max_tokens=4, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "0:hello 1:you 2:hello 3:you "
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_openai_completions_models_and_embeddings(stack: Stack, client: openai.OpenAI) -> None:
    assert client.completions.create(model="m", prompt="a b", max_tokens=2).choices[0].text == "0:a 1:b "
    assert [model.id for model in client.models.list()] == ["m"]
    vectors = client.embeddings.create(model="m", input="a b", encoding_format="float")
    assert len(vectors.data[0].embedding) == 8


@pytest.mark.parametrize("key", ["wrong", "x" * 7000])
def test_openai_with_a_wrong_key_raises_its_authentication_error(stack: Stack, key: str) -> None:
    with (
        openai.OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key=key, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert caught.value.type == "invalid_request_error"


def test_openai_sees_a_closed_route_as_not_found(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.post("/load_lora_adapter", body={}, cast_to=object)


@pytest.mark.parametrize(
    "fault", [{"cut_mid_event": 4}, {"close_after_events": 3}, {"reset_after_events": 3}]
)
def test_openai_raises_when_the_worker_dies_in_a_stream(
    stack: Stack, client: openai.OpenAI, fault: dict[str, int]
) -> None:
    """A clean end would pass for a whole answer."""
    stream = client.chat.completions.create(
        model="m", messages=messages(), stream=True, extra_body={"fake": {**fault, "delay": 0.01}}
    )
    received: list[object] = []
    with pytest.raises(openai.APIError) as caught:
        received.extend(stream)
    assert len(received) == 3
    assert caught.value.code == "upstream_error"


def test_openai_may_not_retry_a_request_that_broke_two_workers(stack: Stack, client: openai.OpenAI) -> None:
    before = stack.count()
    with pytest.raises(openai.InternalServerError) as caught:
        client.with_options(max_retries=2).chat.completions.create(
            model="m", messages=messages(), extra_body={"fake": {"reset_before_head": True}}
        )
    assert caught.value.status_code == 502
    assert stack.count() == before + 2
    stack.wait_ready()


def test_openai_gets_the_workers_own_errors(stack: Stack, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="scripted"):
        client.chat.completions.create(model="m", messages=messages(), extra_body={"fake": {"status": 400}})
    with pytest.raises(openai.InternalServerError, match="scripted"):
        client.chat.completions.create(model="m", messages=messages(), extra_body={"fake": {"status": 500}})


def test_chat_by_hand_is_chat(stack: Stack) -> None:
    assert stack.ask(request(path=CHAT, body=chat(tokens=1))).json["object"] == "chat.completion"
