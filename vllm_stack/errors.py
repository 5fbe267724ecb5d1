"""The errors a user can cause, as one tree.

`cli.main` is the only border that turns them into an exit code: 1 for what was expected to go
wrong, 2 for a command line that cannot be meant, 3 for a mistake of ours, 130 for Ctrl-C.
Every message names the offending value and the way out; none is followed by a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class StackError(Exception):
    """An expected failure: the message is the whole report."""

    exit_code = 1


class UsageError(StackError):
    """A command line that cannot be meant, whatever the state of the machine."""

    exit_code = 2


class InsufficientGpus(StackError):
    """Fewer GPUs than workers x tensor-parallel size."""


class GpuBusy(StackError):
    """There are enough GPUs, but others use them."""


class ModelError(StackError):
    """The model does not exist, or does not fit the options."""


class HubError(ModelError):
    """The hub does not give the model: there is none, it is not for us, or the hub is not to be asked."""


class HubUnreachable(HubError):
    """The hub does not answer, or not in time, or not as a hub does."""


class PortError(StackError):
    """A port is taken, or two parts were given the same one."""


class MachineError(StackError):
    """The machine has too little of something, or does not let us use it."""


class OutputError(StackError):
    """The output directory cannot hold a stack."""


class VllmCommandError(StackError):
    """No runnable vLLM where the options say it is."""


class RayError(StackError):
    """No Ray that could run the workers, or no cluster where one is to be."""


class NoStack(StackError):
    """An operator verb found no stack, or nothing that answers."""


class DriverTrouble(StackError):
    """The NVIDIA driver does not tell what it was asked."""


@contextmanager
def about(model: str) -> Iterator[None]:
    """Name the model of a stack that an error is about, unless it begins with it; "" names none."""
    try:
        yield
    except StackError as error:
        if str(error).startswith(model):
            raise
        raise type(error)(f"{model}: {error}") from None
