"""What the words after `--` are as keyword arguments of vLLM's engine, which Ray passes on as they are.

vLLM's own parser is asked, in the Python that has it: it alone knows that `8k` is 8000, which options are
lists and which are JSON, and what it refuses.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_stack.errors import UsageError, VllmCommandError

_SCRIPT = Path(__file__).parent / "asking" / "vllm_stack_arguments.py"
_MARK = "vllm-stack-arguments:"
_ERROR = re.compile(r"^vllm serve: error: (?P<what>.+)$", re.MULTILINE)
# Arguments of vLLM's frontend that mean nothing where Ray's ingress is the frontend (ray.llm 2.60).
_WITHOUT_EFFECT = frozenset(
    {
        "enable_scale_out",
        "enable_server_load_tracking",
        "enable_tokenizer_info_endpoint",
        "lora_modules",
        "sse_keep_alive_interval",
        "tokens_only",
        "tool_server",
    }
)


@dataclass(frozen=True, slots=True)
class EngineKwargs:
    """Arguments of the engine, and of the frontend as far as Ray has it, as JSON has them.

    `without_counterpart` are options of vLLM's server that mean nothing on Ray; `served_model_name` is there
    by itself, because Ray has its own word for it.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    without_counterpart: tuple[str, ...] = ()
    served_model_name: tuple[str, ...] = ()


def read_engine_kwargs(python: Path, args: Sequence[str], patience: float = 120.0) -> EngineKwargs:
    """Ask vLLM's parser, for `patience` seconds at most.

    Raises `UsageError` for what the parser refuses, in its words, and `VllmCommandError` where there is no
    vLLM that can be asked.
    """
    if not args:
        return EngineKwargs()
    try:
        asked = subprocess.run(
            [python, "-P", _SCRIPT],
            input=json.dumps(list(args)),
            env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise VllmCommandError(f"vLLM did not say within {patience:.0f} s what its options mean") from None
    except OSError as error:
        raise VllmCommandError(f"{python} cannot be executed: {error.strerror or error}") from None
    for line in asked.stdout.splitlines():
        if line.startswith(_MARK):
            return _sorted_out(json.loads(line.removeprefix(_MARK)))
    if (refused := _ERROR.search(asked.stderr)) is not None:
        raise UsageError(f"After `--`: {refused['what']}")
    last = (asked.stderr.strip() or asked.stdout.strip() or "it says nothing").splitlines()[-1]
    raise VllmCommandError(f"vLLM cannot be asked by {python} what its options mean: {last}")


def _sorted_out(answer: Mapping[str, Any]) -> EngineKwargs:
    said: dict[str, Any] = answer["said"]
    names = said.pop("served_model_name", None) or ()
    known = {*answer["engine"], *answer["frontend"]} - _WITHOUT_EFFECT
    return EngineKwargs(
        kwargs={name: value for name, value in said.items() if name in known},
        without_counterpart=tuple(answer["names"][name] for name in said if name not in known),
        served_model_name=(names,) if isinstance(names, str) else tuple(names),
    )


def python_of(program: Path) -> Path:
    """Give the interpreter of the environment that a `vllm` script belongs to."""
    beside = program.parent / "python"
    if beside.exists() or not program.is_file():
        return beside
    real = program.resolve().parent / "python"
    if real.exists():
        return real
    with program.open("rb") as script:
        named = re.match(rb"#!\s*(/\S+)", script.readline(4096))
    return Path(os.fsdecode(named[1])) if named else beside
