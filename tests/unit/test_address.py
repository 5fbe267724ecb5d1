"""An address reads back as it was written, and only addresses are read."""

from __future__ import annotations

import socket

import pytest

from vllm_stack.address import Address, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("address", "text", "family"),
    [
        (TcpAddress("127.0.0.1", 5001), "127.0.0.1:5001", socket.AF_INET),
        (TcpAddress("::1", 80), "[::1]:80", socket.AF_INET6),
        (TcpAddress("gpu-2.lan", 8000), "gpu-2.lan:8000", socket.AF_INET),
        (UnixAddress("/srv/a:b/worker-0.sock"), "unix:/srv/a:b/worker-0.sock", socket.AF_UNIX),
    ],
)
def test_an_address_is_written_and_read_back(
    address: Address, text: str, family: socket.AddressFamily
) -> None:
    assert str(address) == text
    assert parse_address(text) == address
    assert address.family == family


@pytest.mark.parametrize("text", ["", "8000", "host", "host:", ":8000", "unix:relative", "unix:"])
def test_what_is_no_address_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|invalid literal"):
        parse_address(text)


def test_only_names_are_looked_up() -> None:
    assert TcpAddress("localhost", 1).is_name
    assert not TcpAddress("10.0.0.1", 1).is_name
    assert not TcpAddress("fe80::1%eth0", 1).is_name
