"""What a program does around a fork and an exec, where a signal may come at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from vllm_stack.program import block_signals, unblock_in_child

SHOW = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_ctrl_c_in_the_middle_of_a_fork_is_the_parents_affair() -> None:
    """Python's own handler would raise there, and nothing would be started."""

    def prepare() -> None:
        block_signals()
        os.kill(os.getpid(), signal.SIGINT)
        unblock_in_child()

    child = subprocess.run(
        [sys.executable, "-c", SHOW],
        preexec_fn=prepare,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (child.returncode, child.stdout) == (0, "True\n"), "and the next one acts as it should"
