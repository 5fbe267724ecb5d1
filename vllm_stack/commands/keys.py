"""`vllm-stack keys`: named keys of clients, which the proxy takes up while it runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vllm_stack.commands.proxy_keys import PATIENCE, ProxyKeys, Taken, ask_keys, await_taken
from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.errors import StackError
from vllm_stack.keys.api_key import hash_key, new_client_key
from vllm_stack.keys.named import KeyFile, NamedKey, check_name, shown, with_added, with_rotated, without
from vllm_stack.keys.store import KeyPaths, change_keys, present_keys
from vllm_stack.moments import parse_duration, parse_end

# Digits of a digest that are shown: enough to tell keys apart, too few to be of any use.
_DIGITS = 8
_COLUMNS = ("name", "created", "expires", "limits", "requests", "refused", "in flight", "digest")


def add_key(
    out: Path,
    name: str,
    requests_per_minute: int | None,
    concurrent: int | None,
    expires: str | None,
    as_json: bool,
) -> None:
    """Make a key and show it once, then wait until the proxy takes it.

    Raises `UsageError` and `StackError` as `key_file.with_added` and `moments.parse_end`, and `StackError` if
    the proxy runs and does not take it in time.
    """
    now = datetime.now(UTC)
    check_name(name)
    end = parse_end(expires, now) if expires is not None else None
    stack = find_stack_with_door(out)
    paths = KeyPaths(stack.layout.named_keys)
    was_open = not stack.asks_for_key
    key = new_client_key()
    digest = hash_key(key.encode())
    file = change_keys(
        paths, lambda file: with_added(file, name, digest, now, end, requests_per_minute, concurrent)
    )
    if was_open:
        _say(
            "Until now any key was good: from now on the door asks for one. "
            f"It opens where it did, on {stack.door.host}."
        )
    with _shown(stack, file, name, key, as_json) as told:
        if end is not None:
            told.append(f"It ends at {shown(end)}.")


def rotate_key(out: Path, name: str, grace: str, expires: str | None, as_json: bool) -> None:
    """Make another key of the same name and show it once, then wait until the proxy takes it.

    Raises as `add_key`, and `StackError` as `key_file.with_rotated`.
    """
    now = datetime.now(UTC)
    length = parse_duration(grace)
    end = parse_end(expires, now) if expires is not None else None
    stack = find_stack_with_door(out)
    key = new_client_key()
    digest = hash_key(key.encode())
    file = change_keys(
        KeyPaths(stack.layout.named_keys),
        lambda file: with_rotated(file, name, digest, now, length, end),
    )
    with _shown(stack, file, name, key, as_json) as told:
        held = [one.until for one in file.named(name).former]
        told.append(
            f"The key of before holds until {shown(held[-1])}." if held else "The key of before is void."
        )


def revoke_key(out: Path, name: str, as_json: bool) -> None:
    """Take a key out, then wait until the proxy lets nobody in with it; open answers finish.

    Raises `StackError` for a name that is not there, and if the proxy runs and does not hear of it in time.
    """
    stack = find_stack_with_door(out)
    now = datetime.now(UTC)
    file = change_keys(KeyPaths(stack.layout.named_keys), lambda file: without(file, name, now))
    taken = await_taken(stack, file.generation)
    if as_json:
        click.echo(json.dumps({"name": name, "proxy": taken.proxy}, indent=2))
    else:
        click.echo(
            f"{name} is revoked{'' if taken.heard is None else '; answers that are under way finish'}."
        )
    if not file.keys:
        rest = "only those given to render hold" if _rendered(stack) else "the door refuses everyone"
        _say(f"No named key is left: {rest} until one is added.")
    _report(stack, taken)


def list_keys(out: Path, as_json: bool) -> None:
    """Show what holds, and what it has used since the proxy started; never a key."""
    stack = find_stack_with_door(out)
    file = present_keys(KeyPaths(stack.layout.named_keys))
    proxy = ask_keys(stack)
    keys = [*(_of_file(key, proxy) for key in file.keys), *_of_render(stack, proxy)]
    if as_json:
        click.echo(json.dumps({"keys": keys, "proxy": proxy is not None}, indent=2))
        return
    if not keys:
        click.echo("There are no keys. `vllm-stack keys add NAME` makes one.")
        return
    now = datetime.now(UTC)
    rows = [_COLUMNS, *(_row(key, now) for key in keys)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    if proxy is None:
        _say("The proxy does not run: nothing is counted.")


@contextmanager
def _shown(stack: Stack, file: KeyFile, name: str, key: str, as_json: bool) -> Iterator[list[str]]:
    """Show a new key, whatever happens while the proxy is waited for: nobody can show it again.

    What the caller adds to the list is said before the wait, and beside the key.
    """
    told: list[str] = []
    if not as_json:
        click.echo(key)
        _say(f"This is the key of {name}. It is shown this once: only its SHA-256 is kept.")
    proxy = "late"
    try:
        yield told
        for line in told:
            _say(line)
        taken = await_taken(stack, file.generation)
        proxy = taken.proxy
    finally:
        if as_json:
            click.echo(json.dumps({"key": key, **_fields(file.named(name)), "proxy": proxy}, indent=2))
    _report(stack, taken)


def _report(stack: Stack, taken: Taken) -> None:
    """Say whether the proxy goes by the new keys; raises `StackError` if it should and does not."""
    if taken.proxy == "not running":
        _say("No proxy of this stack answers at its admin door: this holds from its next start on.")
    elif taken.proxy == "late":
        who = f"{taken.behind} of its processes" if taken.behind else "it"
        raise StackError(
            f"The keys are changed, but {who} did not take that within {PATIENCE:.0f} s: see "
            f"{stack.layout.log('proxy')}; if it hangs, `supervisorctl -c {stack.layout.supervisord_conf} "
            "restart proxy` ends that"
        )
    else:
        _say("The proxy goes by it.")


def _of_file(key: NamedKey, proxy: ProxyKeys | None) -> dict[str, Any]:
    former = [{"digest": one.digest[-_DIGITS:], "until": one.until.isoformat()} for one in key.former]
    return {**_fields(key), "former": former, "of_render": False, **_used(key.name, proxy)}


def _of_render(stack: Stack, proxy: ProxyKeys | None) -> list[dict[str, Any]]:
    nothing = dict.fromkeys(("created", "expires", "requests_per_minute", "concurrent"))
    return [
        {
            "name": (name := f"key-{number}"),
            **nothing,
            "digest": digest[-_DIGITS:],
            "former": [],
            "of_render": True,
            **_used(name, proxy),
        }
        for number, digest in enumerate(_rendered(stack), 1)
    ]


def _fields(key: NamedKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "created": key.created.isoformat(),
        "expires": key.expires.isoformat() if key.expires else None,
        "requests_per_minute": key.requests_per_minute,
        "concurrent": key.concurrent,
        "digest": key.digest[-_DIGITS:],
    }


def _used(name: str, proxy: ProxyKeys | None) -> dict[str, int | None]:
    """Give what the proxy has counted; None where nobody counts."""
    nothing = dict.fromkeys(("requests", "limited", "in_flight"), None if proxy is None else 0)
    return {**nothing, **(proxy.usage.get(name, {}) if proxy else {})}


def _rendered(stack: Stack) -> Sequence[str]:
    """Give the digests of the keys that were given to `render`."""
    try:
        keys: list[str] = json.loads(stack.layout.proxy_json.read_text("utf-8"))["client_keys"]
    except (OSError, ValueError, KeyError):
        return ()
    return keys


def _row(key: dict[str, Any], now: datetime) -> tuple[str, ...]:
    limits = [
        f"{key[field]}{unit}"
        for field, unit in (("requests_per_minute", "/min"), ("concurrent", " at a time"))
        if key[field] is not None
    ]
    counts = ("" if key[field] is None else str(key[field]) for field in ("requests", "limited", "in_flight"))
    created = "by render" if key["of_render"] else _day(key["created"])
    return key["name"], created, _end(key, now), ", ".join(limits) or "none", *counts, _digest(key, now)


def _end(key: dict[str, Any], now: datetime) -> str:
    if key["expires"] is None:
        return "never"
    return _day(key["expires"]) if datetime.fromisoformat(key["expires"]) > now else "expired"


def _digest(key: dict[str, Any], now: datetime) -> str:
    """Show the last digits, and those of a key of before that holds as well."""
    former = [one for one in key["former"] if datetime.fromisoformat(one["until"]) > now]
    beside = (f"{one['digest']} until {_day(one['until'])}" for one in former)
    return " and ".join((f"...{key['digest']}", *(f"...{one}" for one in beside)))


def _day(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M}Z"


def _say(line: str) -> None:
    """Say something beside what is asked for: a script takes the key from stdout."""
    click.echo(line, err=True)
