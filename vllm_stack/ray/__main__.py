"""Run this box's part of a Ray cluster under the wrapper: `python -m vllm_stack.ray ray.json`."""

from __future__ import annotations

# Before any other import: from here on no stop signal can be lost.
from vllm_stack.program import block_signals, die_with_parent

block_signals()

import json  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

from vllm_stack.layout import RAY, Layout  # noqa: E402
from vllm_stack.ray.conductor import Conductor  # noqa: E402
from vllm_stack.ray.node import read_node  # noqa: E402
from vllm_stack.records.in_force import kept_options  # noqa: E402


def main(argv: list[str]) -> int:
    """Live one life of the box that `argv[1]` describes; gives the exit code."""
    die_with_parent(signal.SIGKILL)
    try:
        rendered = Path(argv[1])
        # The wrapper, which started us, has seen to it that the copy is the one in force.
        kept = kept_options(Layout(rendered.parent).state, RAY)
        spec = json.loads((kept / rendered.name if kept else rendered).read_text("utf-8"))
        node = read_node(spec["ray"])
    except (IndexError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"vllm-stack ray: {error!r}", file=sys.stderr)
        return 1
    return Conductor(node).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
