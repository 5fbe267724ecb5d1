"""The way out for a model that is larger than this box: several boxes like it, by way of Ray."""

from __future__ import annotations

import shlex

from vllm_stack.model.config import ModelConfig
from vllm_stack.model.demand import Demand
from vllm_stack.model.estimate import stages_for
from vllm_stack.options import Options


def on_more_boxes(config: ModelConfig, demand: Demand, options: Options) -> str:
    """Give the end of a sentence with the command for it; "" where one box will do, or none will."""
    stages = None if options.on_ray else stages_for(config, demand)
    if stages is None:
        return ""
    size, boxes = stages
    words = ["vllm-stack", "render", options.model, "--target", "ray", "--ray-host", "ADDRESS"]
    words += ["--revision", options.revision] if options.revision else []
    words += ["--tensor-parallel-size", str(size), "--pipeline-parallel-size", str(boxes)]
    words += ["--", *options.vllm_args] if options.vllm_args else []
    return f"; {boxes} boxes like this one hold it: {shlex.join(words)}"
