"""Holding one drill: traffic, the fault in the middle of it, the watch until the stack is whole again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vllm_stack.drill.door import AdminDoor, Door, Look, Requests
from vllm_stack.drill.faults import Fault, Site, make_fault, reason_to_skip
from vllm_stack.drill.traffic import Traffic
from vllm_stack.drill.trees import Recorded, api_server, left_over, proxies, record
from vllm_stack.drill.verdict import Evidence, Result, Verdict, judge
from vllm_stack.errors import StackError
from vllm_stack.leftovers.processes import Identity

_TICK = 0.05
_SPEAK_EVERY = 10.0
# Seconds, each a bound: for every client's first answer, for a stream to flow on the worker when it is
# struck, for the last of an old tree to go once the worker is back, for an answer after that, and for
# the requests that are open at the end.
_FLOW = 120.0
_BUSY = 5.0
_LAST_TO_GO = 5.0
_PROOF = 60.0
_SETTLE = 30.0
# Seconds from the end of --wedge-timeout to the end of the engine that hangs: the watch looks now and
# then only.
WEDGE_SLACK = 30.0


@dataclass(frozen=True, slots=True)
class Conductor:
    """Holds drills on one stack. `timeout` (seconds) is for being ready before each, and again after it."""

    site: Site
    workers: tuple[str, ...]
    admin: AdminDoor
    door: Door
    requests: Requests
    clients: int
    timeout: float
    say: Callable[[str], None]

    def hold(self, name: str) -> Result:
        """Hold a drill and judge it; whatever happens, nothing it did to the stack stays.

        Raises `StackError` when the workers do not become ready before it.
        """
        skip = reason_to_skip(name, self.site.wedge_timeout)
        if skip is not None:
            self.say(f"{name}: skipped. {skip}")
            return Result(name, Verdict.SKIPPED, (skip,))
        before = self._await_all_ready()
        fault = make_fault(name, self.site)
        try:
            with Traffic(self.door, self.requests, self.clients, self.timeout) as traffic:
                evidence = _Drill(self, name, fault, traffic, before).evidence()
        except StackError as error:
            self.say(f"{name}: {error}")
            return Result(name, Verdict.NOT_RUN, (str(error),))
        finally:
            fault.undo()
        result = judge(name, evidence)
        self.say(f"{name}: {result.verdict.value}")
        return result

    def _await_all_ready(self) -> Look:
        begun = spoken = time.monotonic()
        while True:
            look = self.admin.look()
            if look is not None and look.ready.issuperset(self.workers):
                return look
            now = time.monotonic()
            missing = ", ".join(name for name in self.workers if look is None or name not in look.ready)
            if now - begun > self.timeout:
                raise StackError(f"Not ready within {self.timeout:.0f} s: {missing}")
            if now - spoken > _SPEAK_EVERY:
                spoken = now
                self.say(f"  waiting for {missing} to be ready")
            time.sleep(_TICK)


class _Drill:
    """One drill under way."""

    def __init__(self, conductor: Conductor, name: str, fault: Fault, traffic: Traffic, before: Look) -> None:
        self._all = conductor
        self._site = conductor.site
        self._name = name
        self._fault = fault
        self._traffic = traffic
        self._before = before
        self._on_proxy = name == "proxy"
        self._program = "proxy" if self._on_proxy else self._site.worker

    def evidence(self) -> Evidence:
        """Strike and watch; raises `StackError` when it does not come to the blow."""
        self._await(self._traffic.has_flowed, _FLOW, "The door did not answer every client within {:.0f} s")
        old = self._fault.aim()
        says = self._fault.says.format(worker=self._site.worker)
        victim = self._fault.victim
        self._all.say(f"{self._name}: {says}" + (f" (process {victim.pid})" if victim else ""))
        processes = len(proxies(self._site.pid("proxy")))
        sampled, exposed = self._await_busy()
        ports = self._fault.struck_ports()
        struck = time.monotonic()
        self._fault.strike()
        out, back, gave_up = self._watch(struck, old, victim, processes)
        remains = self._await_the_last(old) if back is not None else ()
        if back is not None:
            self._all.say(f"  ready again after {back - struck:.1f} s")
            self._prove(back)
        self._traffic.settle(_SETTLE)
        return Evidence(
            on_proxy=self._on_proxy,
            outcomes=self._traffic.outcomes(),
            sampled=sampled,
            struck=struck,
            exposed=exposed,
            ports=ports,
            others=len(self._before.ready - {self._site.worker}),
            out=out,
            back=back,
            left_over=remains,
            gave_up=gave_up,
        )

    def _await(self, condition: Callable[[], bool], seconds: float, otherwise: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise StackError(otherwise.format(seconds))
            time.sleep(_TICK)

    def _await_busy(self) -> tuple[float, int]:
        """Wait a little for a stream to flow and the worker to be at work; gives when it was, and how much.

        A model that is too quick for it is struck while it rests.
        """
        deadline = time.monotonic() + _BUSY
        while True:
            sampled = time.monotonic()
            look = self._all.admin.look()
            exposed = self._all.clients if look is None else look.in_flight.get(self._site.worker, 0)
            busy = (look is not None and exposed > 0) or self._on_proxy
            if (busy and self._traffic.open_streams() > 0) or sampled > deadline:
                return sampled, exposed
            time.sleep(_TICK / 5)

    def _watch(
        self, struck: float, old: tuple[Recorded, ...], victim: Recorded | None, processes: int
    ) -> tuple[float | None, float | None, str | None]:
        """Watch until the stack is whole again.

        Gives when the worker was first seen out, when it was back, and why the watch was given up.
        """
        out: float | None = None
        spoken = struck
        while True:
            self._fault.tend()
            look = self._all.admin.look()
            now = time.monotonic()
            if out is None and look is not None and self._site.worker not in look.ready:
                out = now
            if look is not None and self._is_back(look, old, victim, processes):
                return out, now, None
            gave_up = self._patience_over(now - struck, victim)
            if gave_up is not None:
                return out, None, gave_up
            if now - spoken > _SPEAK_EVERY:
                spoken = now
                state = "nobody answers" if look is None else look.states.get(self._site.worker, "unknown")
                sent = len(self._traffic.outcomes())
                self._all.say(f"  {now - struck:.0f} s: {self._site.worker}: {state}; {sent} requests sent")
            time.sleep(_TICK)

    def _is_back(
        self, look: Look, old: tuple[Recorded, ...], victim: Recorded | None, processes: int
    ) -> bool:
        if not look.ready.issuperset(self._all.workers):
            return False
        try:
            pid = self._site.pid(self._program)
        except StackError:
            return False
        if self._on_proxy:
            return not (victim and victim.lives) and len(proxies(pid)) >= processes
        server = api_server(pid)
        recorded = None if server is None else record(server)
        return recorded is not None and not any(
            known.pid == recorded.pid and known.created == recorded.created for known in old
        )

    def _patience_over(self, elapsed: float, victim: Recorded | None) -> str | None:
        """Say that the stack was given enough time, if it was."""
        wedge = self._site.wedge_timeout
        if self._name == "hang" and elapsed > wedge + WEDGE_SLACK and victim is not None and victim.lives:
            return f"The engine hung for {elapsed:.0f} s, and the wedge watch ({wedge:g} s) did not end it"
        if elapsed > self._all.timeout:
            return f"{self._program} was not ready again within {self._all.timeout:g} s"
        return None

    def _await_the_last(self, old: tuple[Recorded, ...]) -> tuple[Recorded, ...]:
        """Give what is left of the old tree when it has had a moment to go."""
        identity = Identity.of(self._site.layout, self._program)
        deadline = time.monotonic() + _LAST_TO_GO
        while True:
            remains = left_over(old, identity, self._site.pid(self._program))
            if not remains or time.monotonic() > deadline:
                return remains
            time.sleep(_TICK)

    def _prove(self, back: float) -> None:
        """Go on until requests that began after the return have been answered, or should have been."""
        deadline = time.monotonic() + _PROOF
        while time.monotonic() < deadline:
            if any(o.begun >= back and not o.is_lost for o in self._traffic.outcomes()):
                return
            time.sleep(_TICK)
