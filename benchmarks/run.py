"""The run: every proxy is started, every measurement made in turn, round after round."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cores import own_cores, split
from benchmarks.extent import Extent
from benchmarks.figures import Figures, Record
from benchmarks.laboratory import BACKENDS, BenchmarkError, Laboratory, Target
from benchmarks.measurements import (
    measure_idle_memory,
    measure_requests,
    measure_stream_memory,
    measure_streams,
)
from benchmarks.processes import Processes
from benchmarks.proxies import Ours, Place, Proxy
from benchmarks.proxies.base import file_limit
from tests.support.ports import free_ports

Measure = Callable[[Target], Figures]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A proxy and where it is to run."""

    proxy: Proxy
    place: Place


class Run:
    """One run of the benchmark; `execute` fills the record."""

    def __init__(self, proxies: Sequence[Proxy], rows: Sequence[str], extent: Extent) -> None:
        self.record = Record()
        self.cores = own_cores()
        self.split = split(self.cores)
        self.split_of_two = split(self.cores, 2)
        self._proxies, self._rows, self._extent = proxies, rows, extent

    def execute(self) -> Record:
        """Measure everything; no process and no file is left, whatever happens."""
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            directory = Path(name)
            with Processes(directory) as processes:
                # Consecutive, as the workers of a rendered stack have them.
                backends = tuple(free_ports(BACKENDS))
                place = Place(directory, 0, 0, backends)
                # Prepared before the backends hold their ports: render looks whether they are free.
                candidates = self._prepare(self._proxies, place)
                of_two = self._prepare([Ours(2)], place) if "processes" in self._rows else []
                self._laboratory = Laboratory(directory, processes, backends)
                self._laboratory.start_backends(self.split)
                self._measure_side_by_side(candidates)
                if "memory" in self._rows:
                    self._measure_memory(candidates)
                if "processes" in self._rows:
                    ours = [candidate for candidate in candidates if candidate.proxy.name == "ours"]
                    self._measure_two_processes([*ours, *of_two])
        return self.record

    def _prepare(self, proxies: Iterable[Proxy], place: Place) -> list[Candidate]:
        candidates = []
        for proxy in proxies:
            reason = proxy.missing()
            if reason is None:
                own = place.of_its_own(proxy.name, free_ports(2))
                try:
                    proxy.prepare(own)
                    candidates.append(Candidate(proxy, own))
                    continue
                except RuntimeError as error:
                    reason = str(error)
            self._skip(proxy.name, reason)
        return candidates

    def _measure_side_by_side(self, candidates: Iterable[Candidate]) -> None:
        """Measure all of them in turn, in rounds: what the machine is up to hits all alike."""
        loads = list(self._loads())
        if not loads:
            return
        targets = [self._laboratory.direct]
        for candidate in candidates:
            targets += self._start(candidate)
        for number in range(1, self._extent.rounds + 1):
            for row, measurement, measure in loads:
                for target in targets:
                    if row in target.rows:
                        self._measure(measurement, target, number, measure)
        for target in targets:
            self._laboratory.stop(target)

    def _loads(self) -> Iterable[tuple[str, str, Measure]]:
        """Give the measurements with the split's cores, and the row that each belongs to."""
        extent = self._extent
        if "requests" in self._rows or "connections" in self._rows:
            yield self._requests("requests", extent.connections, extent.request_seconds)
        if "connections" in self._rows:
            for connections in extent.many_connections:
                if 2 * connections + 1000 < file_limit():
                    yield self._requests("connections", connections, extent.many_seconds)
                else:
                    say(f"{connections} connections: left out, the limit of open files is {file_limit()}")
        if "streams" in self._rows:
            for streams in extent.streams:
                yield self._streams(streams)

    def _requests(self, row: str, connections: int, seconds: float) -> tuple[str, str, Measure]:
        def measure(target: Target) -> Figures:
            return measure_requests(self._laboratory, target, self.split.load, connections, seconds)

        return row, f"requests-{connections}", measure

    def _streams(self, streams: int) -> tuple[str, str, Measure]:
        def measure(target: Target) -> Figures:
            seconds = self._extent.stream_seconds
            return measure_streams(self._laboratory, target, self.split.load, streams, seconds)

        return "streams", f"streams-{streams}", measure

    def _measure_memory(self, candidates: Iterable[Candidate]) -> None:
        """Weigh each proxy fresh: what earlier load has left in its memory would hide the growth."""
        extent = self._extent

        def idle(target: Target) -> Figures:
            return measure_idle_memory(self._laboratory, target, self.split.load, extent.idle_connections)

        def held(target: Target) -> Figures:
            return measure_stream_memory(self._laboratory, target, self.split.load, extent.held_streams)

        for number in range(1, min(extent.rounds, 2) + 1):
            for candidate in candidates:
                if "memory" not in candidate.proxy.rows:
                    continue
                for measure in (idle, held):
                    for target in self._start(candidate):
                        self._measure("memory", target, number, measure)
                        self._laboratory.stop(target)

    def _measure_two_processes(self, candidates: Iterable[Candidate]) -> None:
        """Measure one and two processes of ours on the same cores."""
        self._laboratory.move_backends(self.split_of_two)

        def measure(target: Target) -> Figures:
            extent = self._extent
            cores = self.split_of_two.load
            return measure_requests(
                self._laboratory, target, cores, extent.connections, extent.request_seconds
            )

        targets = [target for candidate in candidates for target in self._start(candidate, two=True)]
        for number in range(1, self._extent.rounds + 1):
            for target in targets:
                self._measure("processes", target, number, measure)

    def _start(self, candidate: Candidate, two: bool = False) -> list[Target]:
        """Start it; gives nothing, and a word in the record, if it does not come up."""
        proxy = candidate.proxy
        if proxy.name in self.record.skipped:
            return []
        try:
            cores = self.split_of_two if two else self.split
            return [self._laboratory.start(proxy, candidate.place, cores)]
        except BenchmarkError as error:
            self._skip(proxy.name, f"did not start: {error}")
            return []

    def _measure(self, measurement: str, target: Target, number: int, measure: Measure) -> None:
        where = f"round {number}/{self._extent.rounds}  {measurement:<14} {target.name:<16}"
        try:
            figures = measure(target)
        except (BenchmarkError, ValueError) as error:
            self.record.faults.append(f"{target.name}, {measurement}, round {number}: {error}")
            say(f"{where} WRONG: {error}")
            return
        self.record.add(measurement, target.name, number, figures)
        say(f"{where} {in_words(figures)}")

    def _skip(self, name: str, reason: str) -> None:
        self.record.skipped[name] = reason
        say(f"{name}: left out, {reason}")


def in_words(figures: Figures) -> str:
    """Give the figures of one measurement as a line of progress."""
    return "  ".join(f"{name} {value:,.2f}" for name, value in figures.items())


def say(text: str) -> None:
    """Show progress; results go to standard output."""
    print(text, file=sys.stderr, flush=True)
