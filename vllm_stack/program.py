"""What every program under supervisord does before it starts anything of its own.

Signals are blocked first and taken one at a time with sigtimedwait: there is no handler that
could run between two statements, and a stop is honoured in every phase. (design note: supervisord
4.3 can lose a SIGTERM that it sends within milliseconds of the fork, `supervisor/process.py`,
because the child still runs supervisord's own handlers; so a program also asks whether it is
being stopped.)
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import xmlrpc.client
from enum import Enum
from pathlib import Path

from vllm_stack.supervisor_rpc import SHUTDOWN_STATE, STOPPING, Supervisor

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
_TAKEN = STOP_SIGNALS | {signal.SIGHUP, signal.SIGCHLD}
# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def block_signals() -> None:
    """Hold back the signals a program acts on until it asks for them with `take_signal`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)


def unblock_signals() -> None:
    """Let signals act by themselves again, just before an exec; Python's handlers end with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _TAKEN)


def unblock_in_child() -> None:
    """Do the same between a fork and its exec, where a Ctrl-C is let go.

    It has reached the parent as well, which will end the child in order.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # drops one that is held back
    unblock_signals()


def take_signal(timeout: float) -> int | None:
    """Wait up to `timeout` seconds for one blocked signal and give its number."""
    info = signal.sigtimedwait(_TAKEN, max(0.0, timeout))
    return info.si_signo if info else None


def die_with_parent(signum: int) -> None:
    """Ask the kernel to send `signum` to this process when its parent ends (prctl(2))."""
    _prctl(_PR_SET_PDEATHSIG, signum)


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant, also of those that left the process group."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


class Order(Enum):
    """What supervisord wants of the program that asks."""

    RUN = "run"
    STOP = "stop"
    # supervisord itself is stopping, or dead: all programs go, the proxy before the workers.
    SHUTDOWN = "shutdown"


def ask_supervisord(environ: dict[str, str]) -> Order:
    """Ask supervisord whether this program was told to stop, or supervisord itself is going.

    A supervisord that answers nothing in time counts as alive: then its signal will arrive. One
    whose socket is gone is dead. Outside supervisord the order is to run.
    """
    url = environ.get("SUPERVISOR_SERVER_URL", "")
    if not url.startswith("unix://"):
        return Order.RUN
    name = f"{environ.get('SUPERVISOR_GROUP_NAME')}:{environ.get('SUPERVISOR_PROCESS_NAME')}"
    try:
        info = Supervisor(Path(url.removeprefix("unix://"))).call("getProcessInfo", name)
    except xmlrpc.client.Fault as fault:
        return Order.SHUTDOWN if fault.faultCode == SHUTDOWN_STATE else Order.RUN
    except (ConnectionRefusedError, FileNotFoundError):
        return Order.SHUTDOWN
    except OSError:
        return Order.RUN
    return Order.STOP if info["state"] == STOPPING else Order.RUN


def reap_children(leader: subprocess.Popen[bytes]) -> int | None:
    """Collect whatever child has ended, adopted ones too; give the leader's return code if it has."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid == 0:
            break
        if pid == leader.pid:
            # Popen must know that its child was collected here, or it would look for it itself.
            leader.returncode = os.waitstatus_to_exitcode(status)
    return leader.returncode


def boot_id() -> str:
    """Name the running boot: what was recorded under another one is over."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def parent_is_gone(parent: int) -> bool:
    """Tell, after `die_with_parent`, whether the parent had ended before the kernel was asked."""
    return os.getppid() != parent
