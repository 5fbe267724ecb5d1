"""Staying with a server until it ends: a stop is passed on, a hang is ended."""

from __future__ import annotations

import signal
import time

from vllm_stack.program import STOP_SIGNALS, Order, ask_supervisord, take_signal
from vllm_stack.records.phase import Phase, write_phase
from vllm_stack.worker.autopsy import Autopsy
from vllm_stack.worker.evidence import take_evidence
from vllm_stack.worker.probe import Probe
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.tree import Tree
from vllm_stack.worker.turn import Turn
from vllm_stack.worker.voice import Voice
from vllm_stack.worker.watchdog import Watchdog, note_memory, tree_processes

# Seconds from the notice to the TERM: the proxy looks for notices every 0.2 s.
NOTICE = 0.5
# Seconds between two TERMs to a server that is still starting.
REPEAT_TERM = 2.0
# Seconds between two looks at what the watchdog has seen.
_TICK = 0.5


class Watch:
    """Watches one server."""

    def __init__(
        self,
        spec: Spec,
        environ: dict[str, str],
        voice: Voice,
        autopsy: Autopsy,
        turn: Turn,
        tree: Tree,
    ) -> None:
        self._spec = spec
        self._environ = environ
        self._voice = voice
        self._autopsy = autopsy
        self._turn = turn
        self._tree = tree
        self._probe = Probe(spec.name, spec.address, spec.admin_port, path=spec.health)
        self._dog = Watchdog(self._probe, spec.limits, spec.memory, spec.note_every, self._take_evidence)
        self._deadline: float | None = None  # of a stop that was asked for
        self._next_term: float | None = None
        self._verdict_said = False

    def until_end(self) -> bool:
        """Stay until the server has ended; True if it was told to.

        The first stop signal goes to the server as TERM, which drains it; a second one, or the end
        of the grace, kills it.
        """
        self._dog.start()
        while self._tree.reap() is None:
            signum = take_signal(_TICK)
            if signum in STOP_SIGNALS:
                self._stop()
            elif signum == signal.SIGHUP:
                self._tree.signal(signal.SIGHUP)
            elif self._deadline is not None:
                self._hurry(self._deadline)
            else:
                self._heed_watchdog()
        self._dog.stop()
        return self._deadline is not None

    def _stop(self) -> None:
        if self._deadline is not None:
            self._voice.say(f"told to stop again: killing {self._spec.what}")
            self._tree.signal(signal.SIGKILL)
            return
        self._voice.say(f"told to stop: {self._spec.what} has {self._spec.stop_grace:.0f} s")
        self._deadline = time.monotonic() + self._spec.stop_grace
        self._dog.stop()
        note_memory(self._spec.memory)  # what was made since the last look
        self._phase(Phase.STOPPING)
        self._turn.give_back()
        # The watchdog looks now and then only: a server may serve that it has not seen ready yet.
        if not self._dog.ready and self._probe.health() is not None:
            # vLLM can lose a TERM while it starts its engine and go on to serve: `zmq_socket_ctx`
            # (vllm/utils/network_utils.py) swallows the KeyboardInterrupt it is turned into. So it
            # is repeated, but only to a server that was not serving: a drain must not be hurried.
            self._next_term = time.monotonic() + REPEAT_TERM
        self._tree.signal(signal.SIGKILL if self._tell_proxy() else signal.SIGTERM)

    def _hurry(self, deadline: float) -> None:
        """See to it that the stop comes to its end."""
        now = time.monotonic()
        if now >= deadline:
            self._voice.say(f"{self._spec.what} did not stop in time: killing it")
            self._tree.signal(signal.SIGKILL)
            self._deadline = now + 5
        elif self._next_term is not None and now >= self._next_term:
            self._tree.signal(signal.SIGTERM)
            self._next_term = now + REPEAT_TERM

    def _tell_proxy(self) -> bool:
        """Have the proxy send elsewhere before vLLM drains; True if a second stop signal came.

        While it drains, vLLM still takes requests and answers them 200 with `finish_reason:
        "abort"` (vllm#57082). When supervisord goes down, the proxy has stopped already.
        """
        with self._voice.noting("the proxy could not be told"):
            self._spec.stopping.touch(mode=0o600)
        if ask_supervisord(self._environ) is Order.SHUTDOWN:
            return False
        deadline = time.monotonic() + NOTICE
        while (left := deadline - time.monotonic()) > 0:
            if take_signal(left) in STOP_SIGNALS:
                return True
        return False

    def _heed_watchdog(self) -> None:
        """Note that the server is ready; end one that is not alive, when the evidence is taken."""
        if self._dog.ready and self._autopsy.ready_since is None:
            self._autopsy.ready_since = time.monotonic()
            self._voice.say(f"{self._spec.what} is ready after {time.monotonic() - self._tree.started:.0f} s")
            self._phase(Phase.READY)
            with self._voice.noting("that the caches are warm could not be noted"):
                self._turn.was_ready()
        verdict = self._dog.verdict
        if verdict is not None and not self._verdict_said:
            self._verdict_said = True
            self._autopsy.verdict = verdict
            self._voice.say(f"{verdict}; taking evidence, then killing it")
            self._phase(Phase.WEDGED, verdict)
        if verdict is not None and not self._dog.is_alive():
            self._tree.signal(signal.SIGKILL)

    def _take_evidence(self, reason: str, metrics: bytes) -> None:
        """Runs in the watchdog's thread, so that a stop is heeded meanwhile."""
        with self._voice.noting("the evidence could not be written"):
            case = take_evidence(self._spec.evidence, self._spec.name, reason, tree_processes(), metrics)
            self._autopsy.evidence = str(case)
            self._voice.say(f"what its processes were doing is in {case}")

    def _phase(self, phase: Phase, detail: str = "") -> None:
        with self._voice.noting("what this worker does could not be noted"):
            write_phase(self._spec.phase, phase, detail)
