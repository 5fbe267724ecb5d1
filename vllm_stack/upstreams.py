"""Servers elsewhere that join the choice (`--upstream`): their URLs, and the keys they ask for."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from vllm_stack.address import TcpAddress
from vllm_stack.errors import UsageError
from vllm_stack.keys.api_key import check_keys, read_key_file

_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_KEY_FILE = "--upstream-key-file"


def parse_upstreams(urls: Iterable[str]) -> tuple[TcpAddress, ...]:
    """Read the URLs in order; raises `UsageError` naming the one that cannot be used, or came twice."""
    addresses: list[TcpAddress] = []
    for url in urls:
        address = parse_upstream(url)
        if address in addresses:
            raise UsageError(f"--upstream {url!r} was given twice: once is enough")
        addresses.append(address)
    return tuple(addresses)


def parse_upstream(url: str, said: str = "--upstream") -> TcpAddress:
    """Read `http://host[:port]`, with an IPv6 address in brackets; raises `UsageError` for all else.

    `said` is what the user wrote before it.
    """
    if "@" in url:
        # Not shown: what stands before the @ may be a password.
        raise UsageError(
            f"{said} has a user name or a password in its URL, where `ps` shows it: "
            f"write http://host:port, and put the key into {_KEY_FILE}"
        )
    parts = _split(url, said)
    if parts.scheme == "https":
        raise UsageError(
            f"{said} {url!r}: only plain http is spoken to upstreams. Tunnel it and name this end, e.g. "
            f"`ssh -N -L 8100:127.0.0.1:8000 HOST` and {said} http://127.0.0.1:8100"
        )
    if parts.scheme != "http":
        raise _refused(url, said)
    if parts.path not in ("", "/") or "?" in url or "#" in url:
        raise UsageError(
            f"{said} {url!r} has more than a host and a port: "
            f"write http://{parts.netloc}, the paths are the client's"
        )
    host = (parts.hostname or "").lower()
    if not _is_host(host):
        raise _refused(url, said)
    return TcpAddress(host, 80 if parts.port is None else parts.port)


def _split(url: str, said: str) -> SplitResult:
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _refused(url, said)  # urlsplit would drop tabs and newlines without a word
    try:
        parts = urlsplit(url)
        if parts.port == 0 or parts.netloc.endswith(":"):
            raise _refused(url, said)
    except ValueError:
        raise _refused(url, said) from None
    return parts


def _refused(url: str, said: str) -> UsageError:
    return UsageError(f"{said} {url!r} is not a server: write http://host:port")


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # A name of digits and dots alone is a mistyped address.
        return _HOST_NAME.fullmatch(host) is not None and re.fullmatch(r"[0-9.]+", host) is None
    return True


def read_upstream_keys(path: Path, addresses: Iterable[TcpAddress]) -> dict[TcpAddress, str]:
    """Give each upstream its key: a line is `URL KEY`, or a key alone for all that have no such line.

    Raises `UsageError` for a file that `read_key_file` would refuse, a URL that is none of
    `addresses`, and a second key for the same one. No message shows a key.
    """
    known = set(addresses)
    given: dict[TcpAddress | None, str] = {}
    for line in read_key_file(path, _KEY_FILE):
        try:
            address, key = _read_line(line)
        except UsageError as error:
            raise UsageError(f"{_KEY_FILE} {path}: {error}") from None
        if address is not None and address not in known:
            raise UsageError(f"{_KEY_FILE} {path} has a key for http://{address}, which is no --upstream")
        if address in given:
            whom = "all upstreams" if address is None else f"http://{address}"
            raise UsageError(f"{_KEY_FILE} {path} has two keys for {whom}: leave one out")
        given[address] = key
    keys = {address: given.get(address, given.get(None)) for address in known}
    return {address: key for address, key in keys.items() if key is not None}


def _read_line(line: str) -> tuple[TcpAddress | None, str]:
    """Read `KEY` or `URL KEY`."""
    url, space, key = line.partition(" ")
    (key,) = check_keys((key.strip() if space else url,))
    return parse_upstream(url) if space else None, key
