"""Asking a Ray cluster through the dashboard of its head, and telling it what to serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from vllm_stack.address import LOOPBACK
from vllm_stack.ray.resources import Box, boxes_of

# Seconds for one answer: the dashboard starts a part of itself for the first question about Serve.
_PATIENCE = 20.0


class ClusterSilent(Exception):
    """The dashboard does not answer, or nothing of use."""


@dataclass(frozen=True, slots=True)
class Application:
    """How one application of Ray Serve is: its state in Ray's word, and what it says of it."""

    state: str
    message: str
    # The state of every deployment, with what it says.
    deployments: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Cluster:
    """The dashboard on this box; `token` is the file with what it asks for."""

    port: int
    token: Path

    def boxes(self) -> tuple[Box, ...]:
        """Give the boxes that have joined; raises `ClusterSilent`."""
        page = self._ask("GET", "/api/v0/nodes")
        try:
            return boxes_of(page["data"]["result"]["result"])
        except (KeyError, TypeError) as error:
            raise ClusterSilent(f"Ray's list of nodes cannot be read: {error!r}") from None

    def deploy(self, config: Mapping[str, Any]) -> None:
        """Have Ray Serve run what `config` says, in place of all else; raises `ClusterSilent`."""
        self._ask("PUT", "/api/serve/applications/", config)

    def undeploy(self) -> None:
        """Have Ray Serve end all that it runs, open answers last; raises `ClusterSilent`."""
        self._ask("DELETE", "/api/serve/applications/")

    def applications(self) -> dict[str, Application]:
        """Give what Ray Serve runs, by name; raises `ClusterSilent`."""
        page = self._ask("GET", "/api/serve/applications/")
        try:
            return {
                name: Application(
                    str(one["status"]),
                    str(one["message"] or ""),
                    {
                        part: (str(of["status"]), str(of["message"] or ""))
                        for part, of in one["deployments"].items()
                    },
                )
                for name, one in page["applications"].items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ClusterSilent(f"Ray Serve's list of applications cannot be read: {error!r}") from None

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            with requests.Session() as session:
                session.trust_env = False  # a proxy for the network has no business on loopback
                answer = session.request(
                    method,
                    f"http://{LOOPBACK}:{self.port}{path}",
                    json=body,
                    headers={"Authorization": f"Bearer {self.token.read_text('utf-8').strip()}"},
                    timeout=_PATIENCE,
                )
            if not answer.ok:
                raise ClusterSilent(f"Ray's dashboard answers {answer.status_code}: {_brief(answer.text)}")
            return answer.json() if answer.content and method == "GET" else None
        except (requests.RequestException, OSError, ValueError) as error:
            raise ClusterSilent(f"Ray's dashboard does not answer: {error}") from None


def _brief(text: str) -> str:
    """Give the last line of a message that says something, which is where Python says what went wrong."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return lines[-1][:400] if lines else "nothing"
