"""What words after `vllm serve MODEL` mean as keyword arguments, by vLLM's own parser.

A program for the Python that has vLLM; it stands on the standard library and vLLM. It reads a JSON list of
words and writes one line of JSON behind a mark, because vLLM logs on the way.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

MARK = "vllm-stack-arguments:"
_UNSAID = object()


def main() -> None:
    words = json.load(sys.stdin)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import BaseFrontendArgs, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve", usage="vllm serve"))
    raw: dict[str, str] = {}
    names: dict[str, str] = {}
    for action in parser._actions:
        names[action.dest] = next((word for word in action.option_strings if word.startswith("--")), "")
        if action.type is not None:
            action.type = _noting(action.dest, action.type, raw)
    # What is set already no default is put in the place of: so it can be seen what was said.
    unsaid = {dest: _UNSAID for dest in names if dest != "help"}
    args = vars(parser.parse_args(words, argparse.Namespace(**unsaid)))
    args.pop("model_tag", None)  # the model itself, which stands elsewhere
    said = {dest: _plain(value, raw.get(dest)) for dest, value in args.items() if value is not _UNSAID}
    answer = {
        "said": said,
        "names": {dest: names.get(dest) or dest for dest in said},
        "engine": [field.name for field in dataclasses.fields(AsyncEngineArgs)],
        "frontend": [field.name for field in dataclasses.fields(BaseFrontendArgs)],
    }
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def _noting(dest: str, convert: Any, raw: dict[str, str]) -> Any:
    def converted(word: str) -> Any:
        raw[dest] = word
        return convert(word)

    converted.__name__ = getattr(convert, "__name__", "value")
    return converted


def _plain(value: Any, word: str | None) -> Any:
    """Give a value as JSON has it; a configuration of vLLM's as the JSON that it was made from."""
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        pass
    try:
        return json.loads(word or "")
    except ValueError:
        return word


if __name__ == "__main__":
    main()
