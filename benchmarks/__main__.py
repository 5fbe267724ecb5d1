"""`python -m benchmarks`, which is `make bench`: measure, print, write."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.extent import FULL, QUICK, ROWS
from benchmarks.figures import Record
from benchmarks.machine import Bystanders, describe_machine
from benchmarks.plot import draw
from benchmarks.proxies import DEFAULT, KNOWN, Proxy
from benchmarks.proxies.base import find_program
from benchmarks.report import Circumstances, markdown
from benchmarks.run import Run, say

OUT = Path(__file__).with_name("out")


def main(words: Sequence[str] | None = None) -> int:
    """Run; 0 if every answer of every proxy was right, 1 if not, 130 after Ctrl-C."""
    options = _parse(words)
    if {"requests", "connections", "processes"} & set(options.rows) and find_program("wrk") is None:
        say("wrk is not installed: make bench-install")
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    extent = QUICK if options.quick else FULL
    if options.rounds:
        extent = replace(extent, rounds=options.rounds)
    proxies = [KNOWN[name] for name in options.only]
    run = Run(proxies, options.rows, extent)
    os.sched_setaffinity(0, run.split.load)
    say(f"Cores: {run.split.words}")
    began, bystanders = datetime.datetime.now(), Bystanders()
    try:
        record = run.execute()
    except KeyboardInterrupt:
        say("Interrupted; everything that was started has ended.")
        return 130
    versions = {proxy.name: _version(proxy) for proxy in proxies}
    circumstances = Circumstances(
        date=f"{began:%Y-%m-%d %H:%M}",
        machine={**describe_machine(), "Taken by other programs meanwhile": bystanders.in_words()},
        versions=versions,
        settings={proxy.name: proxy.settings for proxy in proxies},
        cores=run.split.words,
        cores_of_two=run.split_of_two.words,
        extent=extent,
    )
    _write(record, circumstances, options.out / f"{began:%Y-%m-%d-%H%M}", options.json)
    return 1 if record.faults else 0


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="What the proxy costs beside others.")
    parser.add_argument("--quick", action="store_true", help="one round with short windows: a first look")
    parser.add_argument(
        "--only", type=_names(KNOWN), default=list(DEFAULT), help=f"some of {','.join(KNOWN)}"
    )
    parser.add_argument(
        "--litellm", action="store_true", help="LiteLLM too, which is left out otherwise: it takes long"
    )
    parser.add_argument("--rows", type=_names(ROWS), default=list(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--rounds", type=int, help="how often everything is measured")
    parser.add_argument("--json", action="store_true", help="print all figures of all rounds as JSON")
    parser.add_argument("--out", type=Path, default=OUT, help="where report, plot and figures are written")
    options = parser.parse_args(words)
    if options.litellm and "litellm" not in options.only:
        options.only.append("litellm")
    return options


def _names(known: Sequence[str] | dict[str, Proxy]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
        return names

    return parse


def _version(proxy: Proxy) -> str:
    return proxy.version() if proxy.missing() is None else "not installed"


def _write(record: Record, circumstances: Circumstances, stem: Path, as_json: bool) -> None:
    text = markdown(record, circumstances)
    figures = {"date": circumstances.date, "machine": dict(circumstances.machine), **record.as_json()}
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".md").write_text(f"{text}\n![The same as bars]({stem.name}.png)\n")
    stem.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    draw(record, stem.with_suffix(".png"), f"{circumstances.date}, {circumstances.machine['CPU']}")
    print(json.dumps(figures, indent=1) if as_json else text)
    say(f"Written: {stem}.md, .png, .json")


if __name__ == "__main__":
    sys.exit(main())
