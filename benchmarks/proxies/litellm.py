"""LiteLLM's proxy: the one in Python that most people know."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.dialect import MODEL
from benchmarks.proxies.base import Place, Proxy, package_version
from benchmarks.proxies.routers import RIVALS
from benchmarks.request import KEY


class LiteLLM(Proxy):
    name = "litellm"
    settings = "1 worker, simple-shuffle, no database"

    def missing(self) -> str | None:
        return None if self._program.exists() else "litellm is not installed (LITELLM=1 make bench-install)"

    def version(self) -> str:
        return package_version(self._program.parent / "python", "litellm")

    def prepare(self, place: Place) -> None:
        models = [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"hosted_vllm/{MODEL}",
                    "api_base": f"{url}/v1",
                    "api_key": "any",
                },
            }
            for url in place.backend_urls
        ]
        # JSON is YAML.
        (place.directory / "config.yaml").write_text(json.dumps({"model_list": models}))

    def argv(self, place: Place) -> list[str | Path]:
        config = place.directory / "config.yaml"
        return [
            *(self._program, "--config", config, "--host", "127.0.0.1"),
            *("--port", str(place.port), "--num_workers", "1"),
        ]

    def env(self, place: Place) -> dict[str, str]:
        return {
            **super().env(place),
            "LITELLM_MASTER_KEY": KEY,
            "LITELLM_LOG": "ERROR",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it asks the network
        }

    @property
    def _program(self) -> Path:
        return RIVALS / "litellm" / "bin" / "litellm"
