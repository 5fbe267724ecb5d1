"""The corpus sent to other proxies, too: which of them let through what no worker should have to judge.

    python -m tests.wire.comparison docs/wire.md      # `make wire`

takes nginx and haproxy where they are installed (`make bench-install`), as the benchmark configures them.
Each stands before the same strict fake worker, which counts what reaches it and notes what is malformed.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from benchmarks.proxies import KNOWN, Place, Proxy
from tests.integration.proxy.harness import HOST, KEY, FakeWorker, Stack, ask, request
from tests.support.polling import until
from tests.support.ports import free_ports
from tests.wire.corpus import ACCEPTED, REFUSED, Row

OTHERS = ("nginx", "haproxy")
# Seconds: for the first word of an answer, and for further ones behind it.
_PATIENCE = 1.5
_QUIET = 0.15
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})")
_FOREWORD = """\
# What other proxies make of odd requests

Every row is a request, byte by byte in [`tests/wire/corpus.py`](../tests/wire/corpus.py). `make test` sends
all of them, and mutations of them, to the real proxy, and checks that what reaches a worker is exactly one
well-formed request. This page, which `make wire` writes, shows what others make of the same bytes. Last
written on {date}, with {versions}, in the settings of the
[benchmark](../benchmarks/README.md).

A figure is the status of the answer, *closed* an end without one, *waits* neither within {patience} s. In
bold: something reached a worker that we refuse, with *twice* if it was more than one request and *malformed*
if the worker could not read it by the letter of RFC 9112. That is not always an error: who stands before
other servers may have reasons to be lenient. But what two servers read in two ways is what request smuggling
is made of.

{summary}
"""


class Outcome(NamedTuple):
    """What became of a request: the statuses, whether the connection ended, and what reached the worker."""

    statuses: tuple[int, ...]
    ended: bool
    reached: int
    malformed: int

    def shown(self, refused: bool) -> str:
        """Write it for the table; `refused` tells that we refuse this request."""
        finals = [str(status) for status in self.statuses if status >= 200]
        text = ", ".join(finals) or ("closed" if self.ended else "waits")
        if self.reached > 1:
            text += " twice"
        if self.malformed:
            text += " malformed"
        return f"**{text}**" if self.let_through and refused else text

    @property
    def let_through(self) -> bool:
        return self.reached > 0 or self.malformed > 0


def send(port: int, data: bytes) -> tuple[tuple[int, ...], bool]:
    """Send it, and give the statuses that come and whether the connection ended."""
    with socket.create_connection((HOST, port), timeout=5) as sock:
        try:
            sock.sendall(data)
        except ConnectionError:
            return (), True
        came, ended = b"", False
        deadline = time.monotonic() + _PATIENCE
        while not ended and select.select([sock], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                more = sock.recv(65536)
            except ConnectionError:
                more = b""
            came, ended = came + more, not more
            deadline = time.monotonic() + _QUIET
    return tuple(int(status) for status in _STATUS.findall(came)), ended


class Target(NamedTuple):
    """A proxy that runs, and the workers behind it."""

    name: str
    version: str
    port: int
    workers: Sequence[FakeWorker]

    def try_out(self, row: Row) -> Outcome:
        requests, malformed = self._counts()
        statuses, ended = send(self.port, row.data)
        requests_then, malformed_then = self._counts()
        return Outcome(statuses, ended, requests_then - requests, malformed_then - malformed)

    def _counts(self) -> tuple[int, int]:
        """Give how many requests the workers have had, and how many of those were malformed."""
        states = [worker.state() for worker in self.workers]
        return sum(worker.count() for worker in self.workers), sum(len(one["malformed"]) for one in states)


def targets(directory: Path, closing: ExitStack) -> Iterator[Target]:
    """Start ours and those of the others that are installed, one after another."""
    stack = closing.enter_context(Stack(directory / "ours", workers=1)).start()
    yield Target("vllm-stack", "", stack.port, stack.workers)
    bare = closing.enter_context(Stack(directory / "bare", workers=1))
    bare.log.touch()  # its proxy is never started
    for worker in bare.workers:
        worker.start(VLLM_API_KEY=KEY)  # these pass the client's key on
        until(worker.listening, 20, "the fake worker listens")
    for name in OTHERS:
        if KNOWN[name].missing() is None:
            yield started(KNOWN[name], directory, bare)


def started(proxy: Proxy, directory: Path, stack: Stack) -> Target:
    place = Place(directory, *free_ports(2), tuple(worker.port for worker in stack.workers))
    place = place.of_its_own(proxy.name, [place.port, place.spare_port])
    proxy.prepare(place)
    stack.ledger.start(
        [str(word) for word in proxy.argv(place)],
        env=proxy.env(place),
        cwd=place.directory,
        log=place.directory / "log",
    )
    until(lambda: ask(place.port, request("GET", "/v1/models")).status == 200, 20, f"{proxy.name} answers")
    return Target(proxy.name, proxy.version(), place.port, stack.workers)


def page(found: Sequence[tuple[Target, dict[str, Outcome]]]) -> str:
    """Write the page out of what became of every row at every proxy."""
    names = [target.name for target, _ in found]
    versions = " and ".join(f"{target.name} {target.version}" for target, _ in found if target.version)
    parts = [
        _FOREWORD.format(
            date=datetime.now(UTC).strftime("%-d %B %Y"),
            versions=versions or "no other proxy",
            patience=_PATIENCE,
            summary=summary(found),
        )
    ]
    for title, rows in (("Refused", REFUSED), ("Accepted", ACCEPTED)):
        parts += [f"## {title}\n", f"| request | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for row in rows:
            cells = [outcomes[row.name].shown(rows is REFUSED) for _, outcomes in found]
            parts.append(f"| {row.name} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def summary(found: Sequence[tuple[Target, dict[str, Outcome]]]) -> str:
    """Count what reached a worker of what we refuse."""
    counts = [
        f"{sum(outcomes[row.name].let_through for row in REFUSED)} through {target.name}"
        for target, outcomes in found
    ]
    return f"Of the {len(REFUSED)} requests that we refuse, so many reached a worker: {', '.join(counts)}."


def main() -> None:
    """Try everything, and write the page to the file that is named."""
    (path,) = sys.argv[1:]
    with tempfile.TemporaryDirectory() as directory, ExitStack() as closing:
        found = []
        for target in targets(Path(directory), closing):
            outcomes = {}
            for row in (*REFUSED, *ACCEPTED):
                outcomes[row.name] = target.try_out(row)
            print(f"{target.name}: {len(outcomes)} requests", file=sys.stderr)
            found.append((target, outcomes))
        Path(path).write_text(page(found), "utf-8")


if __name__ == "__main__":
    main()
