"""The names under which a vLLM serves: what clients may say as `model`."""

from __future__ import annotations

import json

from vllm_stack.options import Options
from vllm_stack.vllm_arguments import values_of


def served_names(options: Options, model: str) -> tuple[str, ...]:
    """Give every name that the workers of `model` (as vLLM is told it) answer to, their own first.

    By vllm/entrypoints/launchers/api_server/app_state.py: --served-model-name in place of the model, and the
    adapters of --lora-modules. Adapters that are loaded later are not known here.
    """
    own = values_of(options.vllm_args, "--served-model-name") or (model,)
    adapters = map(_adapter_name, values_of(options.vllm_args, "--lora-modules"))
    return tuple(dict.fromkeys((*own, *options.aliases, *filter(None, adapters))))


def _adapter_name(word: str) -> str:
    """Read `NAME=PATH`, or a JSON object with a name (vllm/entrypoints/launchers/cli_args.py)."""
    if not word.startswith("{"):
        return word.partition("=")[0]
    try:
        name = json.loads(word).get("name")
    except ValueError:
        return ""  # vLLM says what is wrong with it
    return name if isinstance(name, str) else ""
