"""A browser's questions about origins, as the Fetch standard has it ask them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.integration.proxy.harness import Answer, Stack, chat, request

PAGE = "https://app.example.com"
OTHER = "https://evil.example.com"
Door = Callable[..., Stack]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A door for two origins."""
    with Stack(tmp_path_factory.mktemp("cors"), 1, cors_origins=(PAGE, "http://localhost:3000")) as stack:
        yield stack.start()


@pytest.fixture(scope="module")
def everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with ExitStack() as stacks:
        stack = stacks.enter_context(Stack(tmp_path_factory.mktemp("any"), 1, cors_origins=("*",)))
        yield stack.start()


def preflight(stack: Stack, origin: str | None, path: str = "/v1/chat/completions", **more: str) -> Answer:
    headers = {"access_control_request_method": "POST", **more}
    if origin is not None:
        headers["origin"] = origin
    return stack.ask(request("OPTIONS", path, key=None, **headers))


def said_of_origins(answer: Answer) -> dict[str, str]:
    return {name: value for name, value in answer.headers if name.startswith("access-control-")}


def test_a_preflight_is_answered_before_the_key_check(named: Stack) -> None:
    before = named.count()
    answer = preflight(named, PAGE, access_control_request_headers="authorization,content-type,x-custom")
    assert answer.status == 204
    assert said_of_origins(answer) == {
        "access-control-allow-origin": PAGE,
        "access-control-allow-methods": "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        "access-control-allow-headers": "authorization,content-type,x-custom",
        "access-control-max-age": "7200",
    }
    assert answer.header("vary") == "Origin"
    assert answer.header("content-length") is None
    assert named.count() == before, "no worker was asked"


def test_a_preflight_that_names_no_headers_learns_the_usual_ones(named: Stack) -> None:
    allowed = said_of_origins(preflight(named, PAGE))["access-control-allow-headers"]
    assert {"authorization", "content-type", "x-api-key"} <= set(allowed.split(", "))


@pytest.mark.parametrize("path", ["/health", "/livez", "/v1/models", "/sleep"])
def test_every_path_has_a_preflight(named: Stack, path: str) -> None:
    assert preflight(named, PAGE, path).status == 204


def test_a_connection_goes_on_after_a_preflight(named: Stack) -> None:
    with named.wire() as wire:
        wire.send(request("OPTIONS", origin=PAGE, access_control_request_method="POST", key=None))
        assert wire.answer().status == 204
        assert wire.send(request(body=chat(tokens=1), origin=PAGE)).answer().status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_whom_it_is_for_and_the_workers_word_is_dropped(named: Stack, stream: bool) -> None:
    """vLLM allows every origin by itself, and twice the same header counts as none."""
    theirs = {"Access-Control-Allow-Origin": "*", "access-control-allow-credentials": "true"}
    answer = named.ask(request(body=chat(stream=stream, tokens=2, headers=theirs), origin=PAGE))
    assert (answer.status, answer.whole) == (200, True)
    assert [pair for pair in answer.headers if pair[0].startswith("access-control-")] == [
        ("access-control-allow-origin", PAGE),
        ("access-control-expose-headers", "retry-after, x-request-id, x-should-retry"),
    ]
    assert answer.header("vary") == "Origin"


@pytest.mark.parametrize("origin", [None, OTHER, "null", PAGE + "/", PAGE.upper(), ""])
def test_nothing_is_added_for_no_origin_or_another(named: Stack, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    theirs = {"access-control-allow-origin": "*"}
    answer = named.ask(request(body=chat(tokens=1, headers=theirs), **headers))
    assert answer.status == 200
    assert said_of_origins(answer) == {}
    assert answer.header("vary") is None
    refused = preflight(named, origin)
    assert (refused.status, said_of_origins(refused)) == (401, {})


def test_errors_of_our_own_can_be_read_by_the_page(named: Stack) -> None:
    wrong = named.ask(request(body=chat(), key="wrong", origin=PAGE))
    assert (wrong.status, wrong.error["code"]) == (401, "invalid_api_key")
    closed = named.ask(request("GET", "/metrics", origin=PAGE))
    health = named.ask(request("GET", "/health", origin=PAGE))
    broken = named.ask(request(body=chat(close_before_head=True), origin=PAGE))
    assert (closed.status, broken.status, health.status) == (404, 502, 200)
    for answer in (wrong, closed, broken, health):
        assert said_of_origins(answer)["access-control-allow-origin"] == PAGE
    named.wait_ready()


def test_an_options_request_that_is_no_preflight_goes_on(named: Stack) -> None:
    answer = named.ask(request("OPTIONS", "/v1/models", key=None, origin=PAGE))
    assert answer.status == 401
    assert said_of_origins(answer)["access-control-allow-origin"] == PAGE


def test_a_star_is_for_every_page(everybody: Stack) -> None:
    assert said_of_origins(preflight(everybody, OTHER))["access-control-allow-origin"] == "*"
    answer = everybody.ask(request(body=chat(tokens=1), origin=OTHER))
    assert said_of_origins(answer)["access-control-allow-origin"] == "*"
    assert answer.header("vary") is None
    assert said_of_origins(everybody.ask(request(body=chat(tokens=1)))) == {}


def test_without_the_option_nothing_is_touched(stack: Stack) -> None:
    theirs = {"access-control-allow-origin": "*"}
    answer = stack.ask(request(body=chat(tokens=1, headers=theirs), origin=PAGE))
    assert said_of_origins(answer) == theirs
    assert preflight(stack, PAGE).status == 401
