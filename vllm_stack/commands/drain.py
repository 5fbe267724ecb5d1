"""`vllm-stack drain` and `readmit`: take a server out of the proxy's choice, and back in, by hand."""

from __future__ import annotations

import time
import xmlrpc.client
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from vllm_stack.commands.stack import Stack, find_stack_with_door
from vllm_stack.commands.standing import Standing, ask_standings, others_open, server_named
from vllm_stack.errors import StackError
from vllm_stack.layout import drain_order
from vllm_stack.records.drain_order import Reason, give_order, read_order
from vllm_stack.user_name import user_name

# Seconds between two looks; the proxy heeds an order within 0.2 s.
LOOK_EVERY = 0.25
# Seconds in which the proxy takes back what is ready.
_READMISSION = 15.0
_SPEAK_EVERY = 10.0


def drain(out: Path, words: Sequence[str], timeout: float, allow_gap: bool) -> None:
    """Keep new requests from these servers, and wait until what they work on has ended.

    The order outlives this verb, the proxy and the machine: only `readmit` takes it back. Raises
    `StackError` when one has requests in flight after `timeout` seconds, and, but for `allow_gap`, where
    nobody else would serve its model.
    """
    stack = find_stack_with_door(out)
    for name in dict.fromkeys(server_named(stack, word) for word in words):
        if not allow_gap:
            check_gap(stack, name)
        with writing_orders(stack):
            give_order(drain_order(stack.layout.state, name), user_name(), Reason.BY_HAND)
        try:
            wait_drained(stack, name, timeout)
        except KeyboardInterrupt:
            click.echo(f"{name} gets nothing new; `vllm-stack readmit {name}` takes it back", err=True)
            raise
        click.echo(f"{name} is drained; `vllm-stack readmit {name}` takes it back")


def readmit(out: Path, words: Sequence[str]) -> None:
    """Take the orders back; returns when the proxy sends requests there again, if they can take any."""
    stack = find_stack_with_door(out)
    names = dict.fromkeys(server_named(stack, word) for word in words)
    for name in names:
        path = drain_order(stack.layout.state, name)
        if read_order(path) is None:
            click.echo(f"{name} was not drained")
            continue
        withdraw_order(stack, name)
        click.echo(f"{name} is back: {_after_readmission(stack, name)}")


def check_gap(stack: Stack, name: str) -> None:
    """Raise `StackError` where nobody would serve a model if this server, which does, were taken out."""
    standings = ask_standings(stack)
    standing = standings.get(name)
    if standing is None or not standing.open_in or others_open(stack, standings, name):
        return
    raise StackError(
        f"{name} is the only one that serves {stack.model_of(name)} now: requests would wait, then fail. "
        "--allow-gap does it all the same"
    )


def wait_drained(stack: Stack, name: str, timeout: float, say: Callable[[str], object] = click.echo) -> None:
    """Wait until a server that was ordered out has nothing in flight; raises `StackError` after `timeout`.

    Without a proxy there is nothing to wait for.
    """
    begun = time.monotonic()
    spoken = begun - _SPEAK_EVERY
    quiet = False
    while True:
        standing = ask_standings(stack).get(name)
        if standing is None and not proxy_runs(stack):
            say(f"{name} gets nothing: the proxy does not run")
            return
        if quiet and _is_idle(standing):  # two looks: a process may have been about to send
            return
        quiet = _is_idle(standing)
        now = time.monotonic()
        if now - begun >= timeout:
            raise StackError(f"{name} {_holds(standing)} after {timeout:.0f} s, although it was ordered out")
        if not quiet and now - spoken >= _SPEAK_EVERY:
            spoken = now
            say(f"{now - begun:4.0f} s  {name}  draining  {_holds(standing)}")
        time.sleep(LOOK_EVERY)


def wait_open(stack: Stack, name: str, timeout: float) -> bool:
    """Wait until the proxy sends requests to a server; False if it does not within `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        standing = ask_standings(stack).get(name)
        if standing is not None and standing.open_in:
            return True
        time.sleep(LOOK_EVERY)
    return False


def withdraw_order(stack: Stack, name: str) -> None:
    """Take an order back, if there is one; raises `StackError`."""
    with writing_orders(stack):
        drain_order(stack.layout.state, name).unlink(missing_ok=True)


@contextmanager
def writing_orders(stack: Stack) -> Iterator[None]:
    """Say in one line why an order could not be written: a full disk, another user's stack."""
    try:
        yield
    except OSError as error:
        where = stack.layout.state
        raise StackError(f"The order could not be written in {where}: {error.strerror}") from None


def proxy_runs(stack: Stack) -> bool:
    """Tell whether there is a proxy, or is about to be one; one that does not answer in time counts."""
    try:
        info = stack.supervisor.call("getProcessInfo", "proxy")
    except xmlrpc.client.Fault:
        return True  # supervisord is stopping, and with it the proxy
    except OSError:
        return stack.supervisord_runs()
    return info["statename"] in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")


def _is_idle(standing: Standing | None) -> bool:
    return standing is not None and not standing.open_in and not standing.in_flight


def _holds(standing: Standing | None) -> str:
    if standing is None:
        return "is not known: the proxy does not answer"
    if standing.open_in:
        return f"still gets requests from {standing.open_in} of the proxy's processes"
    return f"has {standing.in_flight} request{'s' * (standing.in_flight != 1)} in flight"


def _after_readmission(stack: Stack, name: str) -> str:
    standing = ask_standings(stack).get(name)
    if standing is None:
        return "the proxy does not answer"
    if standing.state not in ("drained", "ready"):
        return f"it gets requests once it is ready (now: {standing.state})"
    return "it gets requests" if wait_open(stack, name, _READMISSION) else "the proxy has not taken it yet"
