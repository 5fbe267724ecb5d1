"""`vllm-stack haproxy`: the configuration of a haproxy before the doors of several boxes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from vllm_stack.address import TcpAddress
from vllm_stack.errors import UsageError
from vllm_stack.files import File, write_files
from vllm_stack.given import absolute
from vllm_stack.layout import is_plain
from vllm_stack.regular_file import MOST_KEYS, read_regular
from vllm_stack.render import fill
from vllm_stack.upstreams import parse_upstream

MOST_DOORS = 16
# Seconds: what a door waits for a silent worker by itself (--response-timeout), and some more.
_PATIENCE = 960
_BIND = re.compile(r"(?P<host>\*|\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]*):(?P<port>[0-9]{1,5})")


def parse_doors(urls: Sequence[str]) -> tuple[TcpAddress, ...]:
    """Read the doors in order; raises `UsageError` for one that cannot be used, too few, or too many."""
    doors: list[TcpAddress] = []
    for url in urls:
        door = parse_upstream(url, "The door")
        if door in doors:
            raise UsageError(f"The door {url!r} was given twice: once is enough")
        doors.append(door)
    if not 2 <= len(doors) <= MOST_DOORS:
        raise UsageError(f"{len(doors)} doors were given: name 2 to {MOST_DOORS}, the one to prefer first")
    return tuple(doors)


def configuration(doors: Sequence[TcpAddress], bind: str, certificate: Path | None, balance: bool) -> str:
    """Give the text of haproxy.cfg: the first door that is well gets everything, or all share it.

    Raises `UsageError` for an address to bind that is none, and a certificate that cannot be named.
    """
    match = _BIND.fullmatch(bind)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(
            f"--bind {bind!r} is no address: write ADDRESS:PORT, or *:PORT for all addresses; "
            "ports are 1 to 65535"
        )
    return fill(
        "haproxy.cfg.j2",
        doors=doors,
        bind=bind,
        certificate=None if certificate is None else _checked(certificate),
        balance=balance,
        patience=_PATIENCE,
    )


def _checked(certificate: Path) -> Path:
    path = absolute(certificate)
    if not is_plain(str(path)):  # what supervisord's parser leaves alone, haproxy's does
        raise UsageError(f"--tls-cert {str(path)!r} has a character that haproxy gives a meaning to")
    try:
        text = read_regular(path, MOST_KEYS).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"--tls-cert {path} cannot be read: {error.strerror}") from None
    for what in ("CERTIFICATE", "PRIVATE KEY"):
        if f"{what}-----" not in text:
            raise UsageError(f"--tls-cert {path} has no {what.lower()}: haproxy wants both in one file")
    return path


def write_configuration(text: str, path: Path) -> None:
    """Write it for its owner alone, who starts haproxy; raises `OutputError`."""
    write_files([File(absolute(path), text)])
