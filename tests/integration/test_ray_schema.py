"""What `serve.yaml` says, held against Ray's own schemas, where Ray is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_stack.planning.on_ray import side_directory
from vllm_stack.ray.serve_config import ROUTERS, Served, Serving, serve_config

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or importlib.util.find_spec("vllm") is None,
        reason="Ray or vLLM is not installed here: `make test-ray` installs both",
    ),
    pytest.mark.timeout(300),
]
# Reads configurations, and prints what Ray makes of each; a process of its own, because it loads torch.
_JUDGE = """
import json, sys
from ray.serve.schema import ServeDeploySchema
from ray.serve.llm import LLMServingArgs
from ray.serve.config import RequestRouterConfig
answers = []
for config in json.load(sys.stdin):
    try:
        schema = ServeDeploySchema.model_validate(config)
        served = LLMServingArgs.model_validate(config["applications"][0]["args"])
        bundles = []
        for one in served.llm_configs:
            router = one.deployment_config.get("request_router_config")
            if router:
                RequestRouterConfig(**router).get_request_router_class()
            engine = one.get_engine_config()
            engine.get_initialization_kwargs()
            bundles.append([engine.placement_strategy, engine.placement_bundles])
        answers.append({"applications": [one.name for one in schema.applications], "bundles": bundles})
    except Exception as error:
        answers.append({"error": repr(error)})
print("\\nANSWERS" + json.dumps(answers))
"""


def served(**changes: Any) -> Served:
    return Served(
        **{
            "model": "some/model",
            "names": ("some/model", "chat"),
            "workers": 2,
            "most_workers": 0,
            "tensor_parallel_size": 2,
            "pipeline_parallel_size": 1,
            "bundle": {"GPU": 1},
            "engine": {
                "max_model_len": 8192,
                "limit_mm_per_prompt": {"image": 2},
                "enable_auto_tool_choice": True,
            },
            **changes,
        }
    )


def serving(**changes: Any) -> Serving:
    values = {"port": 5001, "keep_alive": 75, "drain_timeout": 15.0, "policy": "prefix", "max_inflight": None}
    return Serving(**{**values, "side": str(side_directory()), **changes})


def configurations() -> dict[str, dict[str, Any]]:
    on_cpu = served(bundle={"CPU": 1}, tensor_parallel_size=1, env={"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    return {
        "GPUs": serve_config([served()], serving()),
        "CPUs": serve_config([on_cpu], serving()),
        "bounds": serve_config([served(most_workers=4)], serving(max_inflight=16)),
        "stages": serve_config([served(pipeline_parallel_size=2)], serving()),
        "models": serve_config([served(), served(model="other/model", names=("other",))], serving()),
        **{policy: serve_config([served()], serving(policy=policy)) for policy in ROUTERS},
        "unknown argument": serve_config([served(engine={"no_such_argument": 1})], serving()),
    }


@pytest.fixture(scope="module")
def judged() -> dict[str, dict[str, Any]]:
    configs = configurations()
    result = subprocess.run(
        [sys.executable, "-c", _JUDGE],
        input=json.dumps(list(configs.values())),
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PYTHONPATH": str(side_directory())},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    answers = [line for line in result.stdout.splitlines() if line.startswith("ANSWERS")]
    assert answers, result.stderr[-3000:]
    return dict(zip(configs, json.loads(answers[0].removeprefix("ANSWERS")), strict=True))


@pytest.mark.parametrize("name", [name for name in configurations() if name != "unknown argument"])
def test_ray_takes_what_is_rendered(name: str, judged: dict[str, dict[str, Any]]) -> None:
    assert judged[name].get("applications") == ["vllm", "health"], judged[name]


def test_ray_refuses_an_argument_that_vllm_does_not_have(judged: dict[str, dict[str, Any]]) -> None:
    """So that the test above can fail."""
    assert "no_such_argument" in judged["unknown argument"]["error"]


def test_ray_makes_a_bundle_for_every_gpu_and_keeps_stages_together(
    judged: dict[str, dict[str, Any]],
) -> None:
    assert judged["GPUs"]["bundles"] == [["STRICT_PACK", [{"GPU": 1}] * 2]]
    assert judged["stages"]["bundles"] == [["PACK", [{"GPU": 1}] * 4]]
    assert judged["CPUs"]["bundles"] == [["STRICT_PACK", [{"CPU": 1}]]]
