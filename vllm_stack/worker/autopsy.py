"""Finding out how a server ended, and writing it down for the next start and for people."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

from vllm_stack.process_end import describe_end
from vllm_stack.records.lives import count_failure
from vllm_stack.records.phase import Phase
from vllm_stack.records.record import read_record
from vllm_stack.worker.failure import (
    Failure,
    last_failure,
    new_failure,
    record_failure,
    remember_failure,
)
from vllm_stack.worker.oom import OomCounter
from vllm_stack.worker.output import last_words
from vllm_stack.worker.spec import Spec
from vllm_stack.worker.voice import Voice

# A life that was ready for so many seconds (or for the longest delay) ends a row of failures.
LASTED = 60.0
_LINES = 30  # of the output, kept in the record


class Autopsy:
    """Records the failures of one worker.

    It is done twice: at once with what is known, because whatever happens next the start after it
    must wait, and again with the cause when the whole tree has ended and its last words are read.
    """

    def __init__(self, spec: Spec, voice: Voice) -> None:
        self._spec = spec
        self._voice = voice
        self._begin: str | None = None
        self._oom = OomCounter.read()
        self.ready_since: float | None = None
        self.verdict: str | None = None
        self.evidence: str | None = None

    def begin(self, line: str | None) -> None:
        """A server was started; `line` is what we said of it in the log."""
        self._begin = line
        self._oom = OomCounter.read()

    def of_server(self, returncode: int, seconds: float) -> tuple[Failure, str | None]:
        """Record that the server ended after `seconds`; gives the failure and the line said of it."""
        phase = Phase.STARTING if self.ready_since is None else Phase.READY
        failure = new_failure(returncode, seconds, phase, self._in_row(), self._spec.what)
        failure = replace(failure, cause=self.verdict, evidence=self.evidence)
        line = self._voice.say(
            f"{self._spec.what} {describe_end(returncode)} after {seconds:.0f} s, and nobody had asked it to"
        )
        self._record(failure)
        return failure, line

    def finish(self, failure: Failure, line: str | None) -> None:
        """Add what its last words tell, when nothing of it is left."""
        from vllm_stack.worker.cause import find_cause  # many patterns, which few lives need

        lines = last_words(self._spec.log, self._begin, line)
        cause = failure.cause or find_cause(
            failure.returncode, failure.phase, lines, self._oom.kills_until(OomCounter.read())
        )
        failure = replace(failure, cause=cause, examined=True, lines=tuple(lines[-_LINES:]))
        self._voice.say(f"the cause: {cause}" if cause else "the cause is not known; see the lines above")
        self._record(failure)
        self._remember(failure)

    def of_killed_wrapper(self, seconds: float) -> None:
        """Record the failure of a life that was cut short together with its wrapper."""
        # What its wrapper noted last; nobody noted more.
        was_ready = read_record(self._spec.phase).get("phase") == Phase.READY
        phase = Phase.READY if was_ready else Phase.STARTING
        failure = new_failure(-signal.SIGKILL, seconds, phase, self._in_row(), self._spec.what)
        cause = "its wrapper was killed from outside, and it went with it"
        failure = replace(failure, cause=cause, examined=True)
        self._voice.say(failure.story)
        self._record(failure)
        self._remember(failure)

    def of_command(self, returncode: int, error: OSError) -> None:
        """Record that vLLM could not even be executed."""
        failure = replace(
            new_failure(returncode, 0.0, Phase.STARTING, self._in_row(), self._spec.what),
            cause=f"the program cannot be executed: {error}",
            examined=True,
        )
        self._voice.say(f"{self._spec.what} cannot be started: {error}")
        self._record(failure)
        self._remember(failure)

    def forget(self) -> None:
        """A stop was asked for: the next start waits for nothing."""
        with self._voice.noting("the last failure could not be forgotten"):
            self._spec.failure.unlink(missing_ok=True)

    def _in_row(self) -> int:
        last = last_failure(self._spec.failure)
        if last is None or last.age() is None or self._lasted():
            return 1
        return last.in_row + 1

    def _lasted(self) -> bool:
        if self.ready_since is None:
            return False
        return time.monotonic() - self.ready_since >= max(LASTED, self._spec.restart_delay_max)

    def _record(self, failure: Failure) -> None:
        with self._voice.noting("the failure could not be recorded, so the next start will not wait"):
            record_failure(self._spec.failure, failure)

    def _remember(self, failure: Failure) -> None:
        with self._voice.noting("the failure could not be added to the history"):
            remember_failure(self._spec.history, failure)
        with self._voice.noting("the failure could not be counted"):
            count_failure(self._spec.lives)
