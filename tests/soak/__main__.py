"""Traffic at a fixed rate over a whole stack, of which a random process is killed every few seconds.

    python -m tests.soak --minutes 5 --report soak.md

Real supervisord, real proxy, fake vLLM. The exit code is 1 if a stream that was cut looked whole, if a
request stayed lost after a client's own tries (unless gunicorn's master was killed, which shuts the door for
some seconds), if memory or descriptors grew, or if requests in flight or processes are left at the end.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from tests.integration.conftest import Stack, ask
from tests.soak.clients import MOST, Clients, Kind
from tests.soak.killer import Killer
from tests.soak.watch import Watch, ends
from tests.support.polling import until
from vllm_stack.drill.answer import Ending

_SHOWN = (Ending.WHOLE, Ending.FAILED, Ending.CUT, Ending.BROKEN, Ending.SILENT)
# What may grow: a table of connections, a cache that fills. More than this is a leak.
_GROWTH = 1.25
# Seconds: for so long nobody may listen after a kill of gunicorn's master.
_SHUT = 5.0
_HELD = {"supervisord": "supervisord, MB", "proxy": "the proxy, MB", "descriptors": "its descriptors"}


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=5.0, show_default=True)
@click.option("--rate", type=click.FloatRange(1), default=30.0, show_default=True, help="Requests a second.")
@click.option("--kill-every", type=click.FloatRange(0.5), default=5.0, show_default=True, metavar="SECONDS")
@click.option("--seed", type=int, default=None, help="Of what is killed; a new one each time unless given.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the report here, too.")
def main(minutes: float, rate: float, kill_every: float, seed: int | None, report: Path | None) -> None:
    """Soak a stack of three fake workers and two proxy processes."""
    seed = random.randrange(10**6) if seed is None else seed
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_STACK_SKIP_CHECK", "hub vllm-build")
        with Stack(Path(place) / "out", workers=3, proxy_processes="2", queue_timeout="10") as stack:
            stack.up()
            with Watch(stack) as watch, Clients(stack.door, rate) as clients:
                with Killer(stack, kill_every, random.Random(seed)) as killer:
                    wait(minutes * 60)
                # What was killed last comes back, and the last clients are served.
                until(stack.is_ready, 60, "all workers are ready again")
            left = leftovers(stack)
            text, faults = told(minutes, rate, seed, clients, killer, watch, left)
    print(text)
    if report:
        report.write_text(text + "\n", "utf-8")
    sys.exit(1 if faults else 0)


def wait(seconds: float) -> None:
    """Let the time pass, and show that it does."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        print(f"\r{left:5.0f} s left", end="", file=sys.stderr, flush=True)
        time.sleep(min(5.0, left))
    print("\r", end="", file=sys.stderr)


def leftovers(stack: Stack) -> dict[str, int]:
    """Give what is still held when nobody asks any more, and what is left after a stop."""
    seen: dict[str, int] = {}

    def idle() -> bool:
        workers = json.loads(ask(stack.admin, path="/workers")[1])
        seen["requests in flight"] = sum(one["in_flight"] for one in workers["workers"])
        seen["requests that wait"] = workers["waiting"]
        return not any(seen.values())

    with suppress(AssertionError):  # then the report says what is held
        until(idle, 5, "nothing is in flight")
    assert stack.vllm_stack("down").returncode == 0
    seen["processes after `down`"] = len(stack.processes())
    return seen


def told(
    minutes: float,
    rate: float,
    seed: int,
    clients: Clients,
    killer: Killer,
    watch: Watch,
    left: dict[str, int],
) -> tuple[str, list[str]]:
    """Write the report, and give what went wrong."""
    faults = list(judged(clients, killer, watch, left))
    day = datetime.now(UTC).strftime("%-d %B %Y")
    kills = ", ".join(f"{count} x {role}" for role, count in killer.kills.most_common())
    lines = [
        f"{day}: {minutes:g} minutes, {rate:g} requests a second, {killer.kills.total()} kills ({kills}), "
        f"seed {seed}",
        "",
        f"| requests | {' | '.join(ending.value for ending in _SHOWN)} |",
        "|---|" + "---|" * len(_SHOWN),
    ]
    for kind in Kind:
        for name, counts in (("at the first try", clients.first), ("after a client's tries", clients.last)):
            cells = " | ".join(str(counts[kind, ending]) for ending in _SHOWN)
            lines.append(f"| {kind.value}, {name} | {cells} |")
    lines += ["", "| held | in the second quarter | in the last |", "|---|---|---|"]
    for name, title in _HELD.items():
        before, after = ends(watch.sights, name)
        lines.append(f"| {title} | {before:.1f} | {after:.1f} |")
    lines += ["", "| left | |", "|---|---|", *(f"| {name} | {count} |" for name, count in left.items()), ""]
    lines += [f"* {count} x {detail}" for detail, count in clients.details.most_common(8)]
    if clients.late:
        lines.append(f"* {clients.late} requests did not begin: {MOST} were open")
    shut = sum(map(len, clients.lost.values()))
    if killer.masters:
        lines.append(
            f"* {shut} requests stayed lost: {len(killer.masters)} kills of the master shut the door"
        )
    lines += ["", *(f"FAULT: {fault}" for fault in faults)] if faults else ["", "No fault."]
    return "\n".join(lines), faults


def judged(clients: Clients, killer: Killer, watch: Watch, left: dict[str, int]) -> Iterator[str]:
    for kind in Kind:
        if silent := clients.last[kind, Ending.SILENT]:
            yield f"{silent} answers looked whole and were not"
        lost = [begun for begun in clients.lost[kind] if not while_shut(begun, killer.masters)]
        if lost:
            yield f"{len(lost)} {kind.value} requests stayed lost after a client's tries"
    for name, count in left.items():
        if count:
            yield f"{count} {name}"
    for name, title in _HELD.items():
        before, after = ends(watch.sights, name)
        if after > before * _GROWTH:
            yield f"{title} grew from {before:.1f} to {after:.1f}"


def while_shut(begun: float, masters: Sequence[float]) -> bool:
    """Tell whether a request began when the door was shut, or so soon before that it was on its way in."""
    return any(-1.0 < begun - killed < _SHUT for killed in masters)


if __name__ == "__main__":
    main()
