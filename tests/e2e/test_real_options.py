"""What the sources of the real vLLM say about its options is what its own parser knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_stack.vllm_options.known import read_options
from vllm_stack.vllm_options.package import find_package
from vllm_stack.vllm_options.program import parse_help
from vllm_stack.vllm_options.sources import read_sources
from vllm_stack.vllm_options.unknown import unknown_options

pytestmark = pytest.mark.timeout(300)

# The real parser in one process, for it takes long to import: which of the options on stdin it does
# not have, which it has besides, which command lines it refuses, and then `vllm serve --help=all`.
ONE_PROCESS = """
import json, sys
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

def error(message):
    raise ValueError(message)

parser = FlexibleArgumentParser(prog="vllm serve")
serve = make_arg_parser(parser.add_subparsers(dest="subparser").add_parser("serve"))
parser.error = serve.error = error
asked = json.load(sys.stdin)
verdicts = []
for line in asked["lines"]:
    try:
        parser.parse_args(["serve", "model", *line])
        verdicts.append("")
    except ValueError as refused:
        verdicts.append(str(refused))
differ = sorted(set(asked["options"]) ^ set(serve._option_string_actions))
print(json.dumps({"differ": differ, "verdicts": verdicts}), flush=True)
parser.parse_args(["serve", "--help=all"])
"""
TAKEN = [
    ["--max-model-len", "-1", "--no-enforce-eager"],
    ["--max_model_len=8", "-tp", "2", "-n2"],
    ["-O3", "-O", "2"],
    ["-cc.mode", "3", "--compilation_config.cudagraph_mode=NONE"],
    ["--additional-config.some_key", "-x", "--additional-con.list+", "--a,b"],
    ["--max-model", "8", "--gpu-memory", "0.5"],
]
REFUSED = [
    ["--max-modle-len", "8"],
    ["--max-modle-len=8"],
    ["--additional-confg.a", "3"],
    ["--enable", "8"],
    ["--no-dtype"],
    ["-tp2"],
    ["-d", "2"],
    ["-max-model-len", "8"],
    ["--additional-config+", "a"],
    ['--additional-confg={"a": 1}'],
]


def test_the_options_read_from_the_sources_are_those_of_the_real_parser() -> None:
    program = Path(sys.executable).with_name("vllm")
    package = find_package(program, [str(program)])
    assert package is not None
    assert (package / "engine" / "arg_utils.py").is_file()
    begun = time.process_time()
    options = read_options(program, [str(program)], None, pytest.fail)
    assert time.process_time() - begun < 2
    assert options is not None
    assert options == read_sources(package)

    asked = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS, "serve", "--help=all"],
        input=json.dumps({"options": sorted(options), "lines": [*TAKEN, *REFUSED]}),
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
        env={**os.environ, "NO_COLOR": "1"},
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    answer = json.loads(next(line for line in asked.stdout.splitlines() if line.startswith('{"differ"')))
    assert answer["differ"] == []
    assert parse_help(asked.stdout) == options

    verdicts = answer["verdicts"]
    assert verdicts[: len(TAKEN)] == [""] * len(TAKEN)
    assert [line for line in TAKEN if unknown_options(line, options)] == []
    told = ("unrecognized arguments", "ambiguous option")
    assert [verdict for verdict in verdicts[len(TAKEN) :] if not verdict.startswith(told)] == []
    assert [line for line in REFUSED if not unknown_options(line, options)] == []
