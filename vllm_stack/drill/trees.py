"""Which process is which: found from supervisord's word downwards and by title, never by a bare name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from vllm_stack.leftovers.processes import Identity, find_leftovers, lives


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process as it was: its number, when it began (Unix time), and what it called itself."""

    pid: int
    created: float
    what: str

    @property
    def lives(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 0.05 and lives(process)
        except psutil.NoSuchProcess:
            return False


def record(process: psutil.Process) -> Recorded | None:
    """Note a process; None if it has just ended."""
    try:
        with process.oneshot():
            what = " ".join(process.cmdline())[:80].rstrip() or process.name()
            return Recorded(process.pid, process.create_time(), what)
    except psutil.Error:
        return None


def record_tree(root: int) -> tuple[Recorded, ...]:
    """Note a process and all that descends from it now."""
    try:
        top = psutil.Process(root)
        found = [record(process) for process in (top, *top.children(recursive=True))]
    except psutil.NoSuchProcess:
        return ()
    return tuple(recorded for recorded in found if recorded is not None)


def api_server(wrapper: int) -> psutil.Process | None:
    """Give the vLLM server under a wrapper: its first child. What it adopted came later."""
    try:
        children = psutil.Process(wrapper).children()
        return min(children, key=lambda child: child.create_time(), default=None)
    except psutil.NoSuchProcess:
        return None


def engines(wrapper: int, title: str) -> list[psutil.Process]:
    """Give the processes under a wrapper that say they are engines of the worker with this title."""
    try:
        below = psutil.Process(wrapper).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in below if _first_word(process).startswith(f"{title}::EngineCore")]


def proxies(master: int) -> list[psutil.Process]:
    """Give the processes of the proxy: the children of its master."""
    try:
        return psutil.Process(master).children()
    except psutil.NoSuchProcess:
        return []


def client_ports(process: psutil.Process, door_port: int) -> frozenset[int]:
    """Give the ports of the clients that a process of the proxy is connected to at the door."""
    try:
        connections = process.net_connections("tcp")
    except psutil.Error:
        return frozenset()
    return frozenset(c.raddr.port for c in connections if c.raddr and c.laddr.port == door_port)


def left_over(old: Iterable[Recorded], identity: Identity | None, wrapper: int) -> tuple[Recorded, ...]:
    """Give what still lives of an old tree, recorded before, or found by the worker's identity.

    What is in the tree of the `wrapper` that runs now is no leftover.
    """
    strangers = [] if identity is None else [record(process) for process in find_leftovers(identity)]
    now = {recorded.pid for recorded in record_tree(wrapper)}  # behind the search: it can only have grown
    seen = {recorded.pid: recorded for recorded in (*old, *strangers) if recorded is not None}
    return tuple(recorded for pid, recorded in sorted(seen.items()) if pid not in now and recorded.lives)


def _first_word(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except psutil.Error:
        return ""
    return words[0] if words else ""
