"""The faults themselves: what is struck, how, what has to be done meanwhile, and how it is made good."""

from __future__ import annotations

import contextlib
import time
import xmlrpc.client
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import psutil

from vllm_stack.drill.trees import Recorded, api_server, client_ports, engines, proxies, record, record_tree
from vllm_stack.errors import StackError
from vllm_stack.layout import Layout
from vllm_stack.supervisor_rpc import Supervisor

DRILLS = ("api-server", "engine", "proxy", "hang", "restart")
# supervisor.states.ProcessStates: it does not run, and nothing tries to make it.
_AT_REST = (0, 100, 200)  # STOPPED, EXITED, FATAL
_TICK = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """Where the drills take place: the programs of one stack, and the worker that is hurt."""

    layout: Layout
    supervisor: Supervisor
    worker: str
    door_port: int
    # Seconds: how long supervisord may take to stop a program, and a worker's engine may hang
    # before its wrapper ends it (0: for ever).
    stop_seconds: float
    wedge_timeout: float

    def pid(self, program: str) -> int:
        """Give supervisord's child of this name, 0 if there is none now.

        Raises `StackError` when supervisord does not answer.
        """
        group = "proxy" if program == "proxy" else "workers"
        try:
            info = self.supervisor.call("getProcessInfo", f"{group}:{program}")
        except (OSError, xmlrpc.client.Fault) as error:
            raise StackError(f"supervisord says nothing of {program}: {error}") from None
        return int(info["pid"])


class Fault(ABC):
    """One thing that is done to the stack. `strike` may be called once, `undo` at any moment after."""

    # What the report says was done.
    says = ""

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    def victim(self) -> Recorded | None:
        """The process that is struck, once it was found."""
        return None

    @abstractmethod
    def aim(self) -> tuple[Recorded, ...]:
        """Find whom to strike; gives the processes that must all be gone afterwards.

        Raises `StackError` when there is nobody.
        """

    @abstractmethod
    def strike(self) -> None:
        """Do it; raises `StackError` when whoever was aimed at has gone."""

    def tend(self) -> None:
        """Do what has to be done while the stack is watched; called again and again."""
        return

    def undo(self) -> None:
        """Make good what the stack itself cannot, however far `strike` had come."""
        return

    def struck_ports(self) -> frozenset[int] | None:
        """Give the clients' ports of the connections that are hurt, None where that cannot be told."""
        return None


class _Signal(Fault):
    """A signal to one process."""

    _process: psutil.Process | None = None

    @property
    def victim(self) -> Recorded | None:
        return None if self._process is None else record(self._process)

    @abstractmethod
    def _find(self) -> psutil.Process | None: ...

    def _tree(self) -> tuple[Recorded, ...]:
        return record_tree(self.site.pid(self.site.worker))

    def aim(self) -> tuple[Recorded, ...]:
        self._process = self._find()
        if self._process is None:
            raise StackError(f"There is no process to strike for `{self.says}`")
        return self._tree()

    def strike(self) -> None:
        assert self._process is not None  # noqa: S101 - aimed before
        try:
            self._send(self._process)  # psutil minds a number that was used again
        except psutil.NoSuchProcess:
            raise StackError(f"Process {self._process.pid} had ended before it was struck") from None

    def _send(self, process: psutil.Process) -> None:
        process.kill()


class KillApiServer(_Signal):
    says = "kill -9 the API server of {worker}"

    def _find(self) -> psutil.Process | None:
        return api_server(self.site.pid(self.site.worker))


class KillEngine(_Signal):
    says = "kill -9 the engine of {worker}"

    def _find(self) -> psutil.Process | None:
        title = self.site.layout.process_title(self.site.worker)
        return next(iter(engines(self.site.pid(self.site.worker), title)), None)


class HangEngine(KillEngine):
    """SIGSTOP: the API server goes on to say that it is well, and nothing comes any more."""

    says = "stop the engine of {worker} (SIGSTOP)"

    def _send(self, process: psutil.Process) -> None:
        process.suspend()

    def undo(self) -> None:
        """Let the engine run again, if it is still there; one that runs takes no notice."""
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.resume()


class KillProxy(_Signal):
    """One process of the proxy; its master starts another."""

    says = "kill -9 a process of the proxy"

    def _find(self) -> psutil.Process | None:
        """Take the one that serves most clients, so that the blow is felt."""
        processes = proxies(self.site.pid("proxy"))
        return max(processes, key=lambda p: len(client_ports(p, self.site.door_port)), default=None)

    def _tree(self) -> tuple[Recorded, ...]:
        assert self._process is not None  # noqa: S101 - found just before
        return record_tree(self._process.pid)

    def struck_ports(self) -> frozenset[int] | None:
        return None if self._process is None else client_ports(self._process, self.site.door_port)


@dataclass(eq=False)
class _Steps:
    """How far a restart has come."""

    stop_told: bool = False
    start_told: bool = False
    tree: tuple[Recorded, ...] = field(default=())


class RestartWorker(Fault):
    """What `supervisorctl restart` does: stop, and start as soon as it has stopped."""

    says = "restart {worker}"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._program = f"workers:{site.worker}"
        self._steps = _Steps()

    @property
    def victim(self) -> Recorded | None:
        return self._steps.tree[0] if self._steps.tree else None

    def aim(self) -> tuple[Recorded, ...]:
        self._steps.tree = record_tree(self.site.pid(self.site.worker))
        if not self._steps.tree:
            raise StackError(f"{self.site.worker} does not run: there is nothing to restart")
        return self._steps.tree

    def strike(self) -> None:
        self._steps.stop_told = True
        self._call("stopProcess")

    def tend(self) -> None:
        if self._steps.stop_told and not self._steps.start_told and self._is_at_rest():
            self._call("startProcess")
            self._steps.start_told = True

    def undo(self) -> None:
        """Start it again if it was only stopped, as soon as it has stopped."""
        deadline = time.monotonic() + self.site.stop_seconds
        while self._steps.stop_told and not self._steps.start_told and time.monotonic() < deadline:
            self.tend()
            time.sleep(_TICK)

    def _is_at_rest(self) -> bool:
        try:
            info = self.site.supervisor.call("getProcessInfo", self._program)
        except (OSError, xmlrpc.client.Fault):
            return False
        return info["state"] in _AT_REST

    def _call(self, method: str) -> None:
        """Tell supervisord, without waiting for what comes of it."""
        try:
            self.site.supervisor.call(method, self._program, False)
        except (OSError, xmlrpc.client.Fault) as error:
            raise StackError(f"supervisord does not take {method} {self._program}: {error}") from None


_FAULTS: dict[str, type[Fault]] = {
    "api-server": KillApiServer,
    "engine": KillEngine,
    "proxy": KillProxy,
    "hang": HangEngine,
    "restart": RestartWorker,
}


def make_fault(name: str, site: Site) -> Fault:
    """Make the fault that a drill is named for."""
    return _FAULTS[name](site)


def reason_to_skip(name: str, wedge_timeout: float) -> str | None:
    """Say why a drill cannot be held on this stack; None if it can."""
    if name == "hang" and wedge_timeout <= 0:
        return "The wedge watch is off (--wedge-timeout 0), so nothing would ever end the engine that hangs"
    return None
