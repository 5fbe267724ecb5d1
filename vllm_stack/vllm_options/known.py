"""All options of the installed vLLM.

`vllm serve --help=all` imports torch and takes many seconds, so its sources are read instead. Where there are
none to read (a wrapper script), or they do not say what they must, the program is asked once and its answer
is kept. Whoever cannot be understood is not contradicted: no answer means that nothing is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from vllm_stack.vllm_options.kept import cache_directory, keep, kept_file, recall
from vllm_stack.vllm_options.package import find_package
from vllm_stack.vllm_options.program import ask_program
from vllm_stack.vllm_options.sources import read_sources

# What vllm-stack itself says to a worker: a list of options without these was not understood.
RENDERED = frozenset(
    {
        "--disable-uvicorn-access-log",
        "--enable-server-load-tracking",
        "--enforce-eager",
        "--host",
        "--kv-cache-memory-bytes",
        "--max-model-len",
        "--port",
        "--revision",
        "--served-model-name",
        "--shutdown-timeout",
        "--tensor-parallel-size",
        "--uds",
    }
)
ASKING = "Asking vLLM for its options, once for each version (this can take half a minute)"
ASKING_SECONDS = 120.0


def read_options(
    program: Path,
    argv: Sequence[str],
    version: str | None,
    say: Callable[[str], object] = lambda line: None,
    *,
    cache: Path | None = None,
    patience: float = ASKING_SECONDS,
) -> frozenset[str] | None:
    """Give every option string that `argv serve` takes (`--no-` forms and short ones too), or None.

    The sources of the environment that `program` belongs to are read first. Otherwise the program
    is asked for its help, for `patience` seconds at most, and `say` is told so beforehand; `cache`
    is the directory that keeps its answers. Nothing is raised: whatever goes wrong gives None.
    """
    try:
        package = find_package(program, argv)
    except (OSError, RuntimeError):
        # A directory that may not be entered, or links in a circle.
        package = None
    options = read_sources(package) if package is not None else None
    if options is not None and options >= RENDERED:
        return options
    kept = kept_file(cache or cache_directory(os.environ), argv, version)
    options = recall(kept, sure=version is not None)
    if options is None:
        say(ASKING)
        options = ask_program(argv, patience)
        keep(kept, options)
    return options if options >= RENDERED else None
