"""The errors a user can cause, as one tree.

`cli.main` is the only border that turns them into an exit code: 1 for what was expected to go
wrong, 2 for a command line that cannot be meant, 3 for a mistake of ours, 130 for Ctrl-C.
Every message names the offending value and the way out; none is followed by a traceback.
"""

from __future__ import annotations


class StackError(Exception):
    """An expected failure: the message is the whole report."""

    exit_code = 1


class UsageError(StackError):
    """A command line that cannot be meant, whatever the state of the machine."""

    exit_code = 2


class InsufficientGpus(StackError):
    """Fewer GPUs than workers x tensor-parallel size."""


class ModelError(StackError):
    """The model does not exist, or does not fit the options."""


class PortError(StackError):
    """A port is taken, or two parts were given the same one."""


class OutputError(StackError):
    """The output directory cannot hold a stack."""


class VllmCommandError(StackError):
    """No runnable vLLM where the options say it is."""


class NoStack(StackError):
    """An operator verb found no stack, or nothing that answers."""


class GpuMemoryUnknown(StackError):
    """The driver does not tell how much memory of a GPU is free."""
