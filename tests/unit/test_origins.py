"""Origins are taken as browsers spell them, and only origins are."""

from __future__ import annotations

import pytest

from vllm_stack.errors import UsageError
from vllm_stack.origins import parse_origins


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.com:443", "https://app.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://localhost:80", "http://localhost"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ("null", "null"),
        ("*", "*"),
    ],
)
def test_an_origin_is_spelled_as_a_browser_does(value: str, origin: str) -> None:
    assert parse_origins([value]) == (origin,)


def test_doubles_count_once() -> None:
    assert parse_origins(["https://a", "https://a:443", "https://b"]) == ("https://a", "https://b")


@pytest.mark.parametrize(
    "value",
    ["", "app.example.com", "https://", "https://a/", "https://a/x", "https://a b", "https://*.a", "**"],
)
def test_what_is_no_origin_is_refused_by_its_value(value: str) -> None:
    with pytest.raises(UsageError, match="--cors-origin") as caught:
        parse_origins([value])
    assert repr(value) in str(caught.value)
