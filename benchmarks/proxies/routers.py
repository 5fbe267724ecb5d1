"""The LLM routers written in Rust; each in a Python environment of its own under .venv-bench."""

from __future__ import annotations

from pathlib import Path

from benchmarks.proxies.base import REPOSITORY, Place, Proxy, package_version

RIVALS = REPOSITORY / ".venv-bench"


class Router(Proxy):
    """One of the family: they have the same ancestor, and most options in common."""

    settings = "round_robin, log level warn"
    verbs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def missing(self) -> str | None:
        return None if self._program.exists() else f"{self.name} is not installed (make bench-install)"

    def version(self) -> str:
        return package_version(self._program.parent / "python", self.name)

    def argv(self, place: Place) -> list[str | Path]:
        argv: list[str | Path] = [self._program, *self.verbs]
        argv += ["--host", "127.0.0.1", "--port", str(place.port), "--prometheus-port", str(place.spare_port)]
        argv += ["--worker-urls", *place.backend_urls, "--policy", "round_robin", *self.options]
        return argv

    @property
    def _program(self) -> Path:
        return RIVALS / self.name / "bin" / self.name


class VllmRouter(Router):
    name = "vllm-router"
    options = ("--log-level", "warning")


class Smg(Router):
    name = "smg"
    verbs = ("launch",)
    options = ("--log-level", "warn")


class SglangRouter(Router):
    name = "sglang-router"
    verbs = ("launch",)
    options = ("--log-level", "warn")
