"""Record anew how vLLM describes its own HTTP: what `GET /openapi.json` of a server with every route says.

    .venv/bin/python -m tests.surface.record tests/surface/openapi-vllm-0.32.0.json

Real vLLM builds its application (`build_app`, the function that `vllm serve` calls) and answers the request;
no engine is started and no weights are read, so it takes ten seconds. A server has the routes of what its
model can do. Here it is told that one model can do everything, that every option which adds a route was
given, and that it is in development mode, so that the routes are there that must never be open. Left out
are `/cohere/v2/chat`, which needs Cohere's own package, and what no document of this kind can tell of:
the WebSocket `/v1/realtime`, and `/docs` and its likes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

from tests.tiny_model import build

TASKS = ("generate", "transcription", "realtime", "embed", "token_embed", "classify")
# vLLM reads them while it is imported, which is why that happens in `ask`.
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
OPTIONS = (
    "--enable-fault-tolerance",
    "--enable-lora",
    "--enable-scale-out",
    "--enable-tokenizer-info-endpoint",
    # A model that is pooled has the routes of pooling; those of generation go by the tasks alone.
    *("--runner", "pooling", "--convert", "embed"),
)


def ask(home: Path) -> dict[str, Any]:
    """Have vLLM build its application for a tiny model in `home`, and answer the request."""
    os.environ.update(ENVIRONMENT)
    from starlette.testclient import TestClient
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    model, profiles = home / "model", {"profiler": "torch", "torch_profiler_dir": str(home)}
    build(model)
    words = ["--model", str(model), "--profiler-config", json.dumps(profiles), *OPTIONS]
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(words)
    config = AsyncEngineArgs.from_cli_args(arguments).create_model_config()
    # Without `with`, whose lifespan would ask for an engine.
    answer = TestClient(build_app(arguments, TASKS, config)).get("/openapi.json")
    assert answer.status_code == 200, answer.text
    return cast(dict[str, Any], answer.json())


def main(arguments: list[str]) -> int:
    """Write the document where the command line says: as it came, but for spaces."""
    if len(arguments) != 1:
        print("usage: python -m tests.surface.record PATH", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as home:
        document = ask(Path(home))
    Path(arguments[0]).write_text(json.dumps(document, separators=(",", ":")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
