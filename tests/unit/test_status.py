"""What `status` calls a worker: never ready unless it has just said so itself."""

from __future__ import annotations

import pytest

from vllm_stack.commands.status import judge
from vllm_stack.worker.phase import Phase, PhaseNote


def note(phase: Phase, detail: str = "") -> PhaseNote:
    return PhaseNote(phase, 1.0, None, detail)


@pytest.mark.parametrize(
    ("seen", "program", "trouble", "state"),
    [
        (note(Phase.READY), "RUNNING", None, "ready"),
        (note(Phase.READY), "STARTING", None, "ready"),
        (note(Phase.READY), "RUNNING", "refuses connections", "not answering"),
        (note(Phase.STARTING), "STARTING", "refuses connections", "starting"),
        (note(Phase.STARTING), "STARTING", None, "ready"),
        (note(Phase.WAITING, "vLLM was killed"), "STARTING", None, "waiting"),
        (note(Phase.QUEUED), "RUNNING", None, "queued"),
        (note(Phase.WEDGED), "RUNNING", None, "wedged"),
        # No wrapper lives: whatever supervisord says, nobody serves.
        (None, "RUNNING", None, "starting"),
        (None, "STARTING", None, "starting"),
        (None, "STOPPED", None, "stopped"),
        (None, "BACKOFF", None, "backoff"),
        (None, "", None, "unknown"),
    ],
)
def test_a_worker_is_what_its_wrapper_and_its_own_health_say(
    seen: PhaseNote | None, program: str, trouble: str | None, state: str
) -> None:
    assert judge(seen, program, trouble)[0] == state
