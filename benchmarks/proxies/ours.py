"""vllm-stack's own proxy, rendered and started as users do, without supervisord around it."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.proxies.base import REPOSITORY, Place, Proxy, backend_socket, find_program, output_of
from benchmarks.request import KEY
from vllm_stack import __version__
from vllm_stack.layout import Layout
from vllm_stack.native import SWITCH


class Ours(Proxy):
    """The public door with a client key, the default policy and the shared counters switched on."""

    def __init__(self, processes: int = 1, transport: str = "tcp", native: bool = True) -> None:
        self.name = "ours" if processes == 1 else f"ours-x{processes}"
        self.settings = f"rendered by vllm-stack, {processes} process(es), a client key, the default policy"
        if transport == "unix":
            self.name += "-unix"
            self.settings += ", --worker-transport unix"
            self.rows = ("requests", "streams")
        if not native:
            self.name += "-python"
            self.settings += ", without the part in C"
            self.rows = ("streams",)
        self._native = native
        self._processes = processes
        self._transport = transport

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        """Give the version, and the commit where there is one."""
        if find_program("git") is None:
            return __version__
        commit = output_of("git", "-C", REPOSITORY, "describe", "--always", "--dirty").strip()
        return __version__ if " " in commit else f"{__version__} ({commit})"

    def prepare(self, place: Place) -> None:
        """Render; the backends get the ports that the workers would have."""
        model = place.directory / "model"
        model.mkdir()
        (model / "config.json").write_text('{"num_attention_heads": 4}')
        keys = place.directory / "keys.txt"
        keys.write_text(KEY + "\n")
        keys.chmod(0o600)
        said = output_of(
            *(sys.executable, "-m", "vllm_stack", "render", model, "--out", self._out(place)),
            *("--workers", str(len(place.backends)), "--base-port", str(place.backends[0])),
            *("--port", str(place.port), "--admin-port", str(place.spare_port), "--host", "127.0.0.1"),
            *("--api-key-file", keys, "--proxy-processes", str(self._processes)),
            # Any program will do: no worker is started.
            *("--device", "cpu", "--vllm-command", sys.executable, "--skip-check", "vllm-build"),
            *("--worker-transport", self._transport),
        )
        if not (self._out(place) / "proxy.json").exists():
            raise RuntimeError(f"vllm-stack render: {said.strip()}")
        if self._transport == "unix":
            self._put_sockets(place)

    def _put_sockets(self, place: Place) -> None:
        """Put the backends' sockets where the workers would have theirs."""
        layout = Layout.at(self._out(place))
        for index, port in enumerate(place.backends):
            socket = layout.worker_socket(f"worker-{index}")
            socket.parent.mkdir(parents=True, exist_ok=True)
            socket.symlink_to(backend_socket(place.directory.parent, port))

    def env(self, place: Place) -> dict[str, str]:
        return {**super().env(place), SWITCH: "1" if self._native else "0"}

    def argv(self, place: Place) -> list[str | Path]:
        out = self._out(place)
        return [
            *(sys.executable, "-P", "-m", "vllm_stack.proxy"),
            *(out / "proxy.json", out / "gunicorn.conf.py"),
        ]

    @staticmethod
    def _out(place: Place) -> Path:
        return place.directory / "out"
