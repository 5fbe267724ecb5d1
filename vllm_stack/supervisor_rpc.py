"""supervisord's XML-RPC over its unix socket, with the standard library alone.

The worker wrapper asks it before every start, so it must import little and never hang.
"""

from __future__ import annotations

import http.client
import xmlrpc.client
from pathlib import Path
from typing import Any, cast

from vllm_stack.address import UnixAddress
from vllm_stack.local_http import LocalConnection

SHUTDOWN_STATE = 6  # supervisor.xmlrpc.Faults.SHUTDOWN_STATE: every call faults with it while it stops
STOPPING = 40  # supervisor.states.ProcessStates.STOPPING


class Supervisor:
    """A client of one supervisord; every call may raise `OSError` when nobody answers."""

    def __init__(self, socket_path: Path, timeout: float = 5.0) -> None:
        transport = _UnixTransport(str(socket_path), timeout)
        self._server = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=transport)

    def call(self, method: str, *params: Any) -> Any:
        """Call `supervisor.METHOD`; raises `xmlrpc.client.Fault` as supervisord answers it."""
        try:
            return getattr(self._server.supervisor, method)(*params)
        except (http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise OSError(f"supervisord gave no answer: {error}") from error
        finally:
            self._server("close")()

    def pid(self) -> int | None:
        """Give supervisord's process id, None when nobody is there; 0 when it is, but does not tell."""
        try:
            return cast(int, self.call("getPID"))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == SHUTDOWN_STATE:
                return 0
            raise
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError:
            return 0


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = LocalConnection(UnixAddress(self._path), self._timeout)
        self._connection = host, connection  # where `close` looks for it
        return connection
