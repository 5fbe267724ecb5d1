"""Which requests ask for a tunnel, and which web pages may have one."""

from __future__ import annotations

import json

import pytest

from vllm_stack.proxy.handshake import asks_tunnel, check_origin
from vllm_stack.proxy.refusal import Refusal
from vllm_stack.proxy.request_head import RequestHead

ASKING = {"connection": "Upgrade", "upgrade": "websocket"}


def head(
    method: str = "GET", path: str = "/v1/realtime", version: str = "1.1", **headers: str
) -> RequestHead:
    made = RequestHead()
    made.method, made.path, made.http_1_1 = method.encode(), path.encode(), version == "1.1"
    for name, value in headers.items():
        made.add(name.replace("_", "-").encode(), value.encode())
    return made


@pytest.mark.parametrize(
    "headers",
    [
        ASKING,
        {"Connection": "keep-alive, UPGRADE", "Upgrade": "WebSocket"},
        {**ASKING, "content_length": "0"},
        {**ASKING, "content_length": "00"},
    ],
)
def test_a_websocket_on_the_route_asks_for_a_tunnel(headers: dict[str, str]) -> None:
    assert asks_tunnel(head(**headers))


@pytest.mark.parametrize(
    "other",
    [
        head(),
        head(connection="upgrade"),
        head(upgrade="websocket"),
        head(**{**ASKING, "connection": "close"}),
        head(**{**ASKING, "upgrade": "h2c"}),
        head(**{**ASKING, "upgrade": "websocket, h2c"}),
        head(**{**ASKING, "upgrade": "websocket/13"}),
        head(**ASKING, Upgrade="websocket"),
        head(**ASKING, content_length="1"),
        head(**ASKING, transfer_encoding="chunked"),
        head("POST", **ASKING),
        head("HEAD", **ASKING),
        head(version="1.0", **ASKING),
        head(path="/v1/realtime/", **ASKING),
        head(path="/V1/realtime", **ASKING),
        head(path="/v1/models", **ASKING),
    ],
)
def test_nothing_else_does(other: RequestHead) -> None:
    assert not asks_tunnel(other)


def may(host: str, *origins: str, allowed: tuple[bytes, ...] = ()) -> bool:
    asking = head(host=host)
    for origin in origins:
        asking.add(b"Origin", origin.encode())
    refused: Refusal | None = None
    try:
        check_origin(asking, allowed)
    except Refusal as caught:
        refused = caught
    if refused is None:
        return True
    error = json.loads(refused.body())["error"]
    assert (refused.status, error["code"]) == (403, "origin_not_allowed")
    return False


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000", "https://127.0.0.1:8000"),
        ("Box.Local", "http://box.local"),
        ("box:80", "http://box"),
        ("box", "http://box:80"),
        ("box:443", "https://box"),
        ("box", "https://box:443"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_the_doors_own_pages_may(host: str, origin: str) -> None:
    assert may(host, origin)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("127.0.0.1:8000", "http://evil.example.com"),
        ("127.0.0.1:8000", "http://127.0.0.1:8001"),
        ("127.0.0.1:8000", "http://127.0.0.1"),
        ("127.0.0.1:8000", "http://evil.example.com:8000"),
        ("box", "http://box.evil.com"),
        ("box:80", "https://box"),
        ("box:443", "http://box"),
        ("box", "http://box:180"),
        ("box", "null"),
        ("box", ""),
        ("", ""),
        ("box", "box"),
        ("box", "file://box"),
        ("box", "chrome-extension://box"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000@evil.example.com"),
    ],
)
def test_pages_from_elsewhere_may_not(host: str, origin: str) -> None:
    assert not may(host, origin)


def test_programs_send_no_origin_and_may() -> None:
    assert may("box")


def test_the_operator_names_who_else_may() -> None:
    page = b"https://app.example.com"
    assert may("box", page.decode(), allowed=(page,))
    assert may("box", "null", allowed=(b"null",))
    assert not may("box", "https://app.example.com.evil.com", allowed=(page,))
    assert may("box", "https://evil.example.com", allowed=(b"*",))


def test_two_origins_are_none_that_is_known() -> None:
    page = b"https://app.example.com"
    assert not may("box", page.decode(), "https://evil.example.com", allowed=(page,))
